local r = load(a.rollout, a.server)
if not r or r.version ~= a.version or r.rest or r.lane == '' or r.owner ~= '' then return false end
sent_out(r, 'doc', ARGV[3])
r.lease = 0
return row(r, ARGV[3])
