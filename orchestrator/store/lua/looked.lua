local r = load(a.rollout, a.server)
if not r or r.version ~= a.version or r.rest or r.lane == '' or live(r) then return false end
r.version = number_after(r.version)
call('HSET', r.key, 'doc', ARGV[3], 'version', whole(r.version))
place(r, a.due, r.lane)
r.owner = ''
r.lease = 0
return row(r)
