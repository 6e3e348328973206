local r = load(a.rollout, a.server)
if not r or r.state ~= 'pending' or r.attempts ~= a.from then return false end
if call('EXISTS', P .. 'frozen') == 1 then return false end
local ro = call('HMGET', P .. 'ro:' .. a.rollout, 'state', 'stop', 'wave', 'ready', 'closed')
if ro[1] ~= 'running' or ro[2] ~= '' or ro[4] ~= '1' or ro[5] == '1' then return false end
if tonumber(ro[3]) ~= a.wave or r.wave ~= a.wave then return false end
local flying = 0
for _, n in ipairs(call('HMGET', P .. 'cnt:' .. a.rollout, 'running', 'waiting', 'held')) do
  flying = flying + (tonumber(n or '0'))
end
if flying >= a.limit then return false end
if a.domain ~= '' then
  for _, domain in ipairs(call('HKEYS', P .. 'fly:' .. a.rollout)) do
    if domain ~= a.domain then return false end
  end
end
change(r, {'lane', '', 'sent', ''})
place(r, now, '')
wake()
return whole(r.version)
