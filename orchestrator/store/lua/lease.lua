-- The fence outlives the lease, so that the next one is greater. The owner's own renewal keeps it.
local key = P .. 'lease:' .. a.name
local held = call('HMGET', key, 'owner', 'fence', 'until')
local fence = tonumber(held[2] or '0')
local before = held[1] or ''
if before ~= '' and tonumber(held[3]) > now then
  if before ~= a.owner then return false end
else
  fence = number_after(fence)
end
call('HSET', key, 'owner', a.owner, 'fence', whole(fence), 'until', stamp(now + a.seconds))
if before ~= a.owner then
  if before ~= '' then call('ZREM', P .. 'owners', before .. '\n=' .. a.name) end
  call('ZADD', P .. 'owners', 0, a.owner .. '\n=' .. a.name)
end
return whole(fence)
