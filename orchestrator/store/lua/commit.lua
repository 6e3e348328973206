local r = load(a.rollout, a.server)
local why = lost(r)
if why then return {'fenced', why} end
for _, lock in ipairs(a.locks) do
  local other = holder(lock)
  if other and other ~= a.rollout then return {'locked', lock, other} end
end
-- Handed on: the next step's message is on its way from now.
local sent = ''
if a.handed_on then sent = stamp(now) end
change(r, {'owner', '', 'lease', '0', 'lane', a.look, 'sent', sent, 'lost', ''})
unown(r)
place(r, a.due, a.look)
fail(a.rollout)
for _, lock in ipairs(a.locks) do
  call('SET', P .. 'lock:' .. lock, a.rollout)
  call('SADD', P .. 'locks:' .. a.rollout, lock)
end
wake()
return {'ok', whole(r.version), whole(r.entry)}
