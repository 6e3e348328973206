-- One call of an API: spends a token of the bucket that all workers share, or (refused) learns that it was one too many.
-- As orchestrator/domain/budget.py says it. Returns the seconds to wait.
local key = P .. 'bucket:' .. a.bucket
local v = call('HMGET', key, 'rate', 'tokens', 'at', 'refused', 'refused_at', 'calls')
local at = tonumber(v[3] or whole(now)) or now
local passed = math.max(0, now - at)
local rate = math.min(a.rate, (tonumber(v[1] or '') or a.rate) + passed * a.rate / a.recovery)
local tokens = math.min(a.burst, (tonumber(v[2] or '') or a.burst) + passed * rate)
local refused, refused_at = tonumber(v[4] or '') or 0, tonumber(v[5] or '') or 0
local calls = tonumber(v[6] or '') or 0
local wait = 0
if a.refused then
  if math.abs(now - refused_at) >= a.apart then
    rate, refused_at = math.max(rate / 2, a.rate * a.least), now
  end
  tokens, refused = math.min(tokens, 0), refused + 1
else
  wait = math.max(0, (1 - tokens) / rate)
  if wait <= a.patience then tokens, calls = tokens - 1, calls + 1 end
end
call('ZADD', P .. 'buckets', stamp(now), a.bucket)
call('HSET', key, 'rate', stamp(rate), 'tokens', stamp(tokens), 'at', stamp(now), 'refused', whole(refused),
  'refused_at', stamp(refused_at), 'calls', whole(calls))
call('EXPIRE', key, a.kept)
if a.refused then call('ZREMRANGEBYSCORE', P .. 'buckets', '-inf', stamp(now - a.kept)) end
return stamp(wait)
