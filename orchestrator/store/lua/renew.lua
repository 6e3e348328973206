local r = load(a.rollout, a.server)
local why = lost(r)
if why then return {'fenced', why} end
local lease = tonumber(stamp(now + a.lease))
call('HSET', r.key, 'lease', stamp(lease), 'lane', '')
place(r, lease, '')
return {'ok', stamp(lease)}
