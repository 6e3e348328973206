local ro = P .. 'ro:' .. a.rollout
if call('HGET', ro, 'ready') ~= '1' then call('DEL', ro) end
return 1
