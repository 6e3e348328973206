local r = load(a.rollout, a.server)
if not r or r.rest then return false end
if live(r) then
  call('HSET', r.key, 'lane', '')
  place(r, r.lease, '')
  return false
end
if r.version ~= a.version then return false end
-- The version rises, so that of several coordinators which saw the same, one sends. The time of the first sending that
-- nobody has taken stays: a message that is merely slow has waited that long.
local sent = r.sent
if not a.same_epoch then r.epoch = r.epoch + 1 end
if sent == '' then sent = stamp(now) end
call('HSET', r.key, 'version', whole(r.version + 1), 'epoch', whole(r.epoch), 'sent', sent, 'lane', '',
  'owner', '', 'lease', '0')
unown(r)
place(r, now + a.grace, '')
return whole(r.epoch)
