-- A creation goes in batches under a marker with an end; nothing of it is visible, or binding for long, until
-- create_end has set `ready`.
local ro = P .. 'ro:' .. a.rollout
if call('HGET', ro, 'ready') == '1' then return 'ready' end
call('HSET', ro, 'until', stamp(now + a.seconds))
return 'begun'
