local key = P .. 'once:' .. a.key
local v = call('HMGET', key, 'asked', 'id', 'until')
if not v[1] then
  call('HSET', key, 'asked', a.asked, 'id', a.id, 'until', stamp(now + a.seconds))
  call('EXPIRE', key, whole(a.ttl))
  return {'mine', a.id}
end
if v[1] ~= a.asked then return {'other', v[2]} end
if v[3] == 'done' then return {'done', v[2]} end
if tonumber(v[3]) > now then return {'busy', v[2]} end
call('HSET', key, 'until', stamp(now + a.seconds))
return {'mine', v[2]}
