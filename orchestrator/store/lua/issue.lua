local r = load(a.rollout, a.server)
if not r or r.rest then return false end
if live(r) then
  call('HSET', r.key, 'lane', '')
  place(r, r.lease, '')
  return false
end
if r.version ~= a.version then return false end
if r.owner ~= '' then
  local again = struck(r)
  r.version = number_after(r.version)
  call('HSET', r.key, 'version', whole(r.version), 'owner', '', 'lease', '0', 'lane', '', 'lost', r.lost)
  unown(r)
  r.owner = ''
  if again > now then
    place(r, again, '')
    return false
  end
end
-- The version rises, so that of several coordinators which saw the same, one sends. While a message of the present epoch
-- is out that nobody has taken, the epoch stays, and the time of its first sending: under a backlog a new epoch would
-- make stale what is merely slow, and put it at the end of the queue, for ever.
local sent = r.sent
if sent == '' then
  r.epoch = r.epoch + 1
  sent = stamp(now)
else
  call('HINCRBY', P .. 'counts', 'resent', 1)
end
call('HSET', r.key, 'version', whole(number_after(r.version)), 'epoch', whole(r.epoch), 'sent', sent, 'lane', '',
  'owner', '', 'lease', '0')
unown(r)
-- The longer it is out, the longer the next sending waits: with no worker at work, a backlog is not multiplied either.
local longer = math.min(now - tonumber(sent), a.longest)
place(r, now + math.max(a.grace, longer), '')
return whole(r.epoch)
