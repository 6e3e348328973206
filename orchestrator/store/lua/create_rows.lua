local ro = P .. 'ro:' .. a.rollout
local marker = call('HMGET', ro, 'ready', 'until')
if marker[1] == '1' then return 'ready' end
if not marker[2] or tonumber(marker[2]) <= now then return 'lost' end
call('HSET', ro, 'until', stamp(now + a.seconds))
for i, s in ipairs(a.servers) do
  call('HSET', P .. 'sv:' .. a.rollout .. ':' .. s.server, 'doc', ARGV[2 + i], 'version', '0', 'epoch', '0',
    'entry', '0', 'owner', '', 'fence', '0', 'lease', '0', 'state', s.state, 'rest', s.rest, 'domain', s.domain,
    'lane', '', 'direction', s.direction, 'step', s.step, 'sent', '', 'attempts', s.attempts, 'wave', whole(s.wave))
  call('SADD', P .. 'servers:' .. a.rollout, s.server)
end
return 'ok'
