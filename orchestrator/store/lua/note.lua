if a.server ~= '' then
  local r = load(a.rollout, a.server)
  if not r then return 0 end
  call('HSET', r.key, 'entry', whole(r.entry + 1))
  audit(a.rollout, a.server, r.entry + 1, r.state, r.state, a.entry, ARGV[3])
  return 1
end
local ro = call('HMGET', P .. 'ro:' .. a.rollout, 'ready', 'state')
if ro[1] ~= '1' then return 0 end
audit(a.rollout, '', 0, ro[2], ro[2], a.entry, ARGV[3])
return 1
