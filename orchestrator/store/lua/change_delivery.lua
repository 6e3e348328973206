local key, due = P .. 'delivery:' .. a.id, P .. 'deliveries_due'
local version = tonumber(call('HGET', key, 'version') or '')
if version ~= a.version then return nil end
local after = whole(number_after(version))
call('HSET', key, 'doc', ARGV[3], 'version', after)
if a.due then
  call('ZADD', due, stamp(a.due), a.id)
else
  call('ZREM', due, a.id)
end
return after
