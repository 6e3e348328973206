local key, version = P .. 'outbox', a.name .. ':version'
local there = call('HGET', key, version)
if (there or '') ~= a.was then return false end
if a.gone then
  call('HDEL', key, a.name, version)
  return '0'
end
local after = whole(number_after(tonumber(there or '0')))
call('HSET', key, a.name, ARGV[3], version, after)
return after
