-- One batch of the locks of a rollout that is closed, or never came to be; how many are left.
local ro = call('HMGET', P .. 'ro:' .. a.rollout, 'ready', 'closed', 'until')
if (ro[1] == '1' and ro[2] ~= '1') or (ro[1] ~= '1' and ro[3]) then return 0 end
local key = P .. 'locks:' .. a.rollout
for _, lock in ipairs(call('SPOP', key, 90)) do
  if call('GET', P .. 'lock:' .. lock) == a.rollout then call('DEL', P .. 'lock:' .. lock) end
end
return call('SCARD', key)
