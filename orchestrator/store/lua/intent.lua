local r = load(a.rollout, a.server)
local why = lost(r)
if why then return {'fenced', why} end
if call('EXISTS', P .. 'frozen') == 1 then return {'refused', 'frozen'} end
local ro = call('HMGET', P .. 'ro:' .. a.rollout, 'state', 'stop')
if a.to.state == 'upgraded' then
  -- A's end is not begun while a person looks at the rollout, or wants A back.
  if ro[1] == 'paused' or ro[1] == 'aborting' or ro[1] == 'rolling_back' then return {'refused', 'paused'} end
elseif not a.undo then
  if ro[1] == 'aborting' then
    if not a.finishing then return {'refused', 'aborting'} end
  elseif not GOING[ro[1]] then
    return {'refused', 'paused'}
  elseif ro[2] ~= '' then
    return {'refused', 'stopped'}
  end
end
change(r, {})
return {'ok', whole(r.version), whole(r.entry)}
