local key = P .. 'ro:' .. a.rollout
fit(a.rollout)
local ro = call('HMGET', key, 'ready', 'version', 'state')
if ro[1] ~= '1' or tonumber(ro[2]) ~= a.version then return false end
local version = whole(number_after(a.version))
call('HSET', key, 'doc', ARGV[3], 'version', version, 'state', a.state, 'wave', whole(a.wave),
  'stop', a.stop, 'closed', a.closed)
if a.closed == '1' then call('SREM', P .. 'open', a.rollout) else call('SADD', P .. 'open', a.rollout) end
audit(a.rollout, '', 0, ro[3], a.state, a.entry, ARGV[4], ARGV[5])
wake()
return version
