local r = load(a.rollout, a.server)
local why = lost(r)
if why then return {'fenced', why} end
local lease = tonumber(stamp(now + a.lease))
call('HSET', r.key, 'lease', stamp(lease), 'lane', '')
if not r.rest then place(r, lease, '') end
return {'ok', stamp(lease)}
