local nonce, log, due = P .. 'nonce:' .. a.once, P .. 'deliveries', P .. 'deliveries_due'
local there = call('GET', nonce)
if there then return there end
if call('ZCOUNT', due, '-inf', '+inf') >= a.most then return '' end
local old = call('ZREVRANGE', log, a.log - 1, -1)
local waits = {}
for _, id in ipairs(old) do waits[id] = call('ZSCORE', due, id) end
call('SET', nonce, a.id, 'EX', whole(a.keep))
call('HSET', P .. 'delivery:' .. a.id, 'doc', ARGV[3], 'payload', ARGV[4], 'version', whole(number_after(0)))
call('ZADD', log, stamp(a.at), a.id)
if a.due then call('ZADD', due, stamp(a.due), a.id) end
for _, id in ipairs(old) do
  if not waits[id] then
    call('DEL', P .. 'delivery:' .. id)
    call('ZREM', log, id)
  end
end
return a.id
