-- The version is not compared: who was overtaken by a turn gives the lease back all the same.
local r = load(a.rollout, a.server)
if not r or r.owner ~= a.owner or r.fence ~= a.fence then return 0 end
if a.died then struck(r) end
call('HSET', r.key, 'owner', '', 'lease', '0', 'lane', r.rest and '' or a.look, 'lost', r.lost)
unown(r)
if not r.rest then place(r, a.due or now, a.look) end
wake()
return 1
