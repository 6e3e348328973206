local key = P .. 'tokens'
if call('HEXISTS', key, a.id) == 0 then return 0 end
return call('HSETNX', key, a.id .. ':revoked', stamp(now))
