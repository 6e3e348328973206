local key = P .. 'look:' .. a.lane
local found = call('ZRANGEBYSCORE', key, '-inf', stamp(now), 'LIMIT', 0, a.limit)
for _, m in ipairs(found) do call('ZADD', key, 'XX', stamp(now + a.postpone), m) end
return found
