local r = load(a.rollout, a.server)
if not r or r.version ~= a.version or live(r) then return false end
if call('EXISTS', P .. 'frozen') == 1 then return false end
if r.owner ~= '' then struck(r) end
unown(r)
r.owner = a.owner
r.fence = number_after(r.fence)
r.lease = tonumber(stamp(now + a.lease))
call('HSET', r.key, 'owner', r.owner, 'fence', whole(r.fence), 'lease', stamp(r.lease), 'lane', '', 'lost', r.lost)
call('ZADD', P .. 'owners', 0, r.owner .. '\n' .. member(r))
if not r.rest then place(r, r.lease, '') end
local found = row(r)
found[#found + 1] = r.lost
return found
