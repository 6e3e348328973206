local entries = call('XRANGE', P .. 'audit:' .. a.rollout, '(' .. a.after, '+', 'COUNT', a.limit + 1)
if #entries > a.limit then return {} end
local found, told = {a.after}, {}
for _, entry in ipairs(entries) do
  found[1] = entry[1]
  for i = 1, #entry[2], 2 do
    local server = entry[2][i] == 's' and entry[2][i + 1] or ''
    if server ~= '' and not told[server] then
      told[server] = true
      found[#found + 1] = server
    end
  end
end
return found
