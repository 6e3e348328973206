local key = P .. 'lease:' .. a.name
if call('HGET', key, 'owner') ~= a.owner then return 0 end
call('HSET', key, 'owner', '', 'until', '0')
return call('ZREM', P .. 'owners', a.owner .. '\n=' .. a.name)
