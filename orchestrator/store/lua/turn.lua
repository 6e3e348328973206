local r = load(a.rollout, a.server)
if not r or r.version ~= a.version then return false end
local ro = P .. 'ro:' .. a.rollout
local is = call('HMGET', ro, 'closed', 'version')
if is[1] == '1' or (a.seen and tonumber(is[2]) ~= a.seen) then return false end
local ENDED = {upgraded = true, rolled_back = true, failed = true}
local due = a.due
local held = live(r)
-- Who was lost may have a call under way: that is known until a record says so. A new way begins without it: what a
-- person lets go on that was held, and what goes the other way.
if not held and r.owner ~= '' then struck(r) end
if r.state == 'held' or r.direction ~= a.to.direction then r.lost = '' end
local more = {'lane', '', 'sent', '', 'lost', r.lost}
-- Whoever holds the lease may be in the middle of a call: nobody else begins before it ends.
if held and due then due = math.max(due, r.lease) end
if not held then
  more = {'lane', '', 'sent', '', 'lost', r.lost, 'owner', '', 'lease', '0'}
end
change(r, more)
if not held then
  unown(r)
  r.owner = ''
  r.lease = 0
end
if ENDED[r.state] and not ENDED[a.to.state] then outdate(a.rollout) end
place(r, due, '')
fail(a.rollout)
wake()
return row(r)
