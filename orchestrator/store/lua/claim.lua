local r = load(a.rollout, a.server)
local reason
-- Whoever could not read the record does not take it: it would keep those away who can.
local doc = r and call('HGET', r.key, 'doc')
local schema = doc and tonumber(string.match(doc, '^{"schema":(%d+),') or nil)
if r and not schema then error({err = 'GARBAGE at ' .. r.key}) end
if not r then reason = 'unknown'
elseif schema > a.schema then reason = 'newer schema'
elseif r.rest then reason = 'settled'
elseif r.epoch ~= a.epoch then reason = 'stale epoch'
elseif r.step ~= a.step or r.direction ~= a.direction then reason = 'another step'
elseif live(r) and r.owner ~= a.owner then reason = 'leased'
end
local sent = r and tonumber(r.sent)
local wait = tonumber(call('GET', P .. 'queue_wait') or '0')
if reason then
  call('HINCRBY', P .. 'counts', 'ignored ' .. reason, 1)
  return {reason}
end
local before = r.owner
if before ~= '' and not live(r) then struck(r) end
r.fence = number_after(r.fence)
r.lease = tonumber(stamp(now + a.lease))
call('HSET', r.key, 'owner', a.owner, 'fence', whole(r.fence), 'lease', stamp(r.lease), 'sent', '', 'lane', '',
  'lost', r.lost)
if before ~= a.owner then
  unown(r)
  call('ZADD', P .. 'owners', 0, a.owner .. '\n' .. member(r))
end
r.owner = a.owner
place(r, r.lease, '')
wait = wait * 0.98
if sent then wait = math.max(wait, now - sent) end
call('SET', P .. 'queue_wait', stamp(wait))
local found = row(r, doc)
found[#found + 1] = r.lost
return {'', unpack(found)}
