call('HSET', P .. 'worker', a.worker, ARGV[3])
call('ZADD', P .. 'workers', stamp(now + a.ttl), a.worker)
for _, gone in ipairs(call('ZRANGEBYSCORE', P .. 'workers', '-inf', stamp(now), 'LIMIT', 0, 50)) do
  call('ZREM', P .. 'workers', gone)
  call('HDEL', P .. 'worker', gone)
end
return 1
