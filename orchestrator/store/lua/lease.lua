-- The fence outlives the lease, so that the next one is greater. The owner's own renewal keeps it.
local key = P .. 'lease:' .. a.name
local held = call('HMGET', key, 'owner', 'fence', 'until')
local fence = tonumber(held[2] or '0')
if held[1] and held[1] ~= '' and tonumber(held[3]) > now then
  if held[1] ~= a.owner then return false end
else
  fence = fence_after(fence)
end
call('HSET', key, 'owner', a.owner, 'fence', whole(fence), 'until', stamp(now + a.seconds))
return whole(fence)
