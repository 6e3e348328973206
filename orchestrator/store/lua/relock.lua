-- The locks of an open rollout that nobody holds are its own again. Answers lock and holder in turn, of those that were
-- not its own; the holder is empty where there was none.
local said = {}
local ro = call('HMGET', P .. 'ro:' .. a.rollout, 'ready', 'closed')
if ro[1] ~= '1' or ro[2] == '1' then return said end
for _, lock in ipairs(a.locks) do
  local other = holder(lock)
  if other ~= a.rollout then
    said[#said + 1] = lock
    said[#said + 1] = other or ''
  end
  if not other then call('SET', P .. 'lock:' .. lock, a.rollout) end
  if not other or other == a.rollout then call('SADD', P .. 'locks:' .. a.rollout, lock) end
end
return said
