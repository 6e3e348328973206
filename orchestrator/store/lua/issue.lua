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
return whole(sent_out(r))
