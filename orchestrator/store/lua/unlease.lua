local key = P .. 'lease:' .. a.name
if call('HGET', key, 'owner') ~= a.owner then return 0 end
return call('HSET', key, 'owner', '', 'until', '0')
