local r = load(a.rollout, a.server)
if not r or r.version ~= a.version then return false end
local ro = P .. 'ro:' .. a.rollout
if call('HGET', ro, 'closed') == '1' then return false end
local ENDED = {upgraded = true, rolled_back = true, failed = true}
local due = a.due
local more = {'lane', '', 'sent', '', 'lost', ''}
local held = live(r)
-- Whoever holds the lease may be in the middle of a call: nobody else begins before it ends.
if held and due then due = math.max(due, r.lease) end
if not held then
  more = {'lane', '', 'sent', '', 'lost', '', 'owner', '', 'lease', '0'}
end
change(r, more)
if not held then
  unown(r)
  r.owner = ''
  r.lease = 0
end
if ENDED[r.state] and not ENDED[a.to.state] then call('HINCRBY', ro, 'version', 1) end
place(r, due, '')
fail(a.rollout)
wake()
return row(r)
