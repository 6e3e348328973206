local ro = P .. 'ro:' .. a.rollout
local marker = call('HMGET', ro, 'ready', 'until')
if marker[1] == '1' then return {'ready'} end
if not marker[2] or tonumber(marker[2]) <= now then return {'lost'} end
for _, lock in ipairs(a.locks) do
  local other = holder(lock)
  if other and other ~= a.rollout then return {'locked', lock, other} end
end
call('HSET', ro, 'until', stamp(now + a.seconds))
if not a.check then
  for _, lock in ipairs(a.locks) do call('SET', P .. 'lock:' .. lock, a.rollout) end
  if #a.locks > 0 then call('SADD', P .. 'locks:' .. a.rollout, unpack(a.locks)) end
end
return {'ok'}
