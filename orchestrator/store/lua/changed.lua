local log = P .. 'audit:' .. a.rollout
local entries = call('XREVRANGE', log, '+', '(' .. a.after, 'COUNT', a.limit + 1)
if #entries > a.limit then return {} end
local last = entries[1] or call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1] or {'0'}
-- A log that ends before what was seen of it is not the one that was seen.
if not entries[1] and last[1] ~= a.after then return {} end
local found, told = {last[1]}, {}
for _, entry in ipairs(entries) do
  for i = 1, #entry[2], 2 do
    local server = entry[2][i] == 's' and entry[2][i + 1] or ''
    if server ~= '' and not told[server] then
      told[server] = true
      found[#found + 1] = server
    end
  end
end
return found
