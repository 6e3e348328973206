local ro = P .. 'ro:' .. a.rollout
local marker = call('HMGET', ro, 'ready', 'until')
if marker[1] == '1' then return 'ready' end
if not marker[2] or tonumber(marker[2]) <= now then return 'lost' end
call('HSET', ro, 'ready', '1', 'doc', ARGV[3], 'version', whole(a.version), 'state', a.state, 'wave', whole(a.wave),
  'stop', a.stop, 'closed', a.closed)
call('HDEL', ro, 'until')
for state, n in pairs(a.counts) do call('HSET', P .. 'cnt:' .. a.rollout, state, whole(n)) end
for domain, n in pairs(a.domains) do call('HSET', P .. 'fly:' .. a.rollout, domain, whole(n)) end
for m, at in pairs(a.due) do call('ZADD', P .. 'due', stamp(at), m) end
call('ZADD', P .. 'rollouts', stamp(a.created_at), a.rollout)
call('SADD', P .. 'open', a.rollout)
audit(a.rollout, '', 0, '', a.state, a.entry, ARGV[4], ARGV[5])
wake()
return 'ok'
