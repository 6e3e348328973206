local keys = {P .. 'due'}
for _, lane in ipairs(call('SMEMBERS', P .. 'lanes')) do keys[#keys + 1] = P .. 'look:' .. lane end
local least
for _, key in ipairs(keys) do
  local score = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  if score and (not least or score < least) then least = score end
end
return least and stamp(least) or false
