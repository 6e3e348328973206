-- What every script begins with. KEYS[1] is the namespace's prefix with its hash tag, from which each key is made.
-- ARGV: 1 the time in seconds, or empty for the server's own; 2 the arguments as JSON; 3 and on documents, never parsed.
-- Every check comes before the first write, so that a script which refuses has changed nothing.
local P = KEYS[1]
local a = cjson.decode(ARGV[2])

local now
if ARGV[1] ~= '' then
  now = tonumber(ARGV[1])
else
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Lua's own tostring keeps 14 digits only.
local function stamp(x) return string.format('%.6f', x) end
local function whole(x) return string.format('%.0f', x) end

local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'WRONGTYPE', 1, true) then
      error({err = 'WRONGTYPE at ' .. key .. ' for ' .. command})
    end
    error(reply)
  end
  return reply
end

local MOST_LOST = 6

local function wake() call('XADD', P .. 'wake', 'MAXLEN', '16', '*', 'w', '1') end

-- The next fence, or the next version. A plain counter would repeat itself after a failover that lost writes, and
-- whoever has seen one of the lost ones would be taken for somebody who has seen the other.
local function number_after(previous)
  return math.max(previous + 1, math.floor(now * 1000000 + 0.5))
end

-- Who holds a lock. One of a closed rollout, or of a creation that was given up, is free.
local function holder(lock)
  local rid = call('GET', P .. 'lock:' .. lock)
  if not rid then return nil end
  local ro = call('HMGET', P .. 'ro:' .. rid, 'ready', 'closed', 'until')
  if ro[1] == '1' then
    if ro[2] == '1' then return nil end
    return rid
  end
  if not ro[3] or tonumber(ro[3]) <= now then return nil end
  return rid
end

-- What a script writes for a rollout is of the type that it takes: one that failed in the middle of its writes would
-- leave a record moved on, and not in the agenda that it asks for.
local fitting = {}
local function fit(rid)
  if fitting[rid] then return end
  local kinds = {due = 'zset', owners = 'zset', lanes = 'set', open = 'set', wake = 'stream', ['audit:' .. rid] = 'stream',
    ['cnt:' .. rid] = 'hash', ['fly:' .. rid] = 'hash', ['ledger:' .. rid] = 'hash', ['ro:' .. rid] = 'hash',
    ['locks:' .. rid] = 'set'}
  if a.look and a.look ~= '' then kinds['look:' .. a.look] = 'zset' end
  for name, kind in pairs(kinds) do
    local is = call('TYPE', P .. name).ok
    if is ~= 'none' and is ~= kind then error({err = 'WRONGTYPE at ' .. P .. name .. ' for a ' .. kind}) end
  end
  fitting[rid] = true
end

local function member(r) return r.rid .. '/' .. r.sid end

-- An upgrade's control fields; nil when there is none.
local function load(rid, sid)
  fit(rid)
  local key = P .. 'sv:' .. rid .. ':' .. sid
  local v = call('HMGET', key, 'version', 'epoch', 'entry', 'owner', 'fence', 'lease', 'state', 'rest', 'domain',
    'lane', 'direction', 'step', 'sent', 'attempts', 'wave', 'lost')
  if not v[1] then return nil end
  local r = {key = key, rid = rid, sid = sid, version = tonumber(v[1]), epoch = tonumber(v[2]),
    entry = tonumber(v[3]), owner = v[4], fence = tonumber(v[5]), lease = tonumber(v[6]), state = v[7],
    rest = v[8] == '1', domain = v[9], lane = v[10], direction = v[11], step = v[12], sent = v[13],
    attempts = v[14], wave = tonumber(v[15]), lost = v[16] or ''}
  if not (r.version and r.epoch and r.entry and r.owner and r.fence and r.lease and r.state and r.wave) then
    error({err = 'GARBAGE at ' .. key})
  end
  return r
end

local function live(r) return r.owner ~= '' and r.lease > now end

-- Why the caller's claim does not hold any more; nil when it does.
local function lost(r)
  if not r then return 'its record is gone' end
  if r.owner ~= a.owner or r.fence ~= a.fence then
    if r.owner == '' then return 'its lease was given back' end
    return 'its lease was taken by ' .. r.owner
  end
  if r.lease <= now then return 'its lease has ended' end
  if r.version ~= a.version or r.epoch ~= a.epoch then return 'its record was changed by somebody else' end
  return nil
end

-- In `due`, in the agenda of a lane, or (due nil) in none. The hash field `lane` is the caller's to write.
local function place(r, due, lane)
  local m = member(r)
  if due and lane == '' then
    call('ZADD', P .. 'due', stamp(due), m)
  elseif due then
    call('ZADD', P .. 'look:' .. lane, stamp(due), m)
    call('SADD', P .. 'lanes', lane)
  end
  if not due or lane ~= '' then call('ZREM', P .. 'due', m) end
  if r.lane ~= '' and (not due or r.lane ~= lane) then
    call('ZREM', P .. 'look:' .. r.lane, m)
    if call('EXISTS', P .. 'look:' .. r.lane) == 0 then call('SREM', P .. 'lanes', r.lane) end
  end
end

local function unown(r)
  if r.owner ~= '' then call('ZREM', P .. 'owners', r.owner .. '\n' .. member(r)) end
end

-- Its holder has lost the lease without giving it back: it died, or froze. Its process is remembered until a change is
-- committed. Returns when it may be tried again: from the second in a row on not at once, nor together with all others
-- that went down with the same process, so that only what kills is there when the next one dies.
local function struck(r)
  call('HINCRBY', P .. 'counts', 'lost', 1)
  local process = string.match(r.owner, '^(.*):') or r.owner
  local before = select(2, string.gsub(r.lost, '%S+', ''))
  if before < MOST_LOST then r.lost = r.lost == '' and process or r.lost .. ' ' .. process end
  if before == 0 then return now end
  return now + (r.fence % 2000) / 1000
end

local GOING = {awaiting_approval = true, awaiting_window = true, running = true, baking = true}
local FLYING = {running = true, waiting = true, held = true}

local function count(r, state)
  local key = P .. 'cnt:' .. r.rid
  if r.state ~= state then
    call('HINCRBY', key, r.state, -1)
    call('HINCRBY', key, state, 1)
  end
  if r.domain ~= '' and FLYING[r.state] ~= FLYING[state] then
    local flying = P .. 'fly:' .. r.rid
    local left = call('HINCRBY', flying, r.domain, FLYING[state] and 1 or -1)
    if left <= 0 then call('HDEL', flying, r.domain) end
  end
end

local function audit(rid, sid, n, was, is, entry, detail, doc)
  local fields = {'at', stamp(now), 's', sid, 'n', whole(n), 'e', entry.event, 'a', entry.actor, 'w', was, 'x', is,
    'd', detail}
  if doc then
    fields[#fields + 1] = 'r'
    fields[#fields + 1] = doc
  end
  call('XADD', P .. 'audit:' .. rid, '*', unpack(fields))
end

-- The record's next version, its audit entry, counters and ledger, from ARGV: 3 the record, 4 the entry's detail, 5 the
-- record again, compressed, for the entry. `more` are further fields of the hash.
local function change(r, more)
  local to = a.to
  r.version = number_after(r.version)
  r.entry = r.entry + 1
  call('HSET', r.key, 'doc', ARGV[3], 'version', whole(r.version), 'entry', whole(r.entry), 'state', to.state,
    'rest', to.rest, 'direction', to.direction, 'step', to.step, 'attempts', to.attempts, unpack(more))
  audit(r.rid, r.sid, r.entry, r.state, to.state, a.entry, ARGV[4], ARGV[5])
  count(r, to.state)
  for _, item in ipairs(a.ledger or {}) do
    call('HSET', P .. 'ledger:' .. r.rid, item[1], item[2])
  end
end

-- Nobody moves the rollout on who has not seen what has just changed.
local function outdate(rid)
  local ro = P .. 'ro:' .. rid
  call('HSET', ro, 'version', whole(number_after(tonumber(call('HGET', ro, 'version') or '0'))))
end

-- A failure is counted, and the whole rollout stopped, with the change that saw it. The first reason stays.
local function fail(rid)
  if a.failure ~= '' then call('HINCRBY', P .. 'cnt:' .. rid, 'failed:' .. a.failure, 1) end
  local ro = P .. 'ro:' .. rid
  if a.stop ~= '' and (call('HGET', ro, 'stop') or '') == '' then
    call('HSET', ro, 'stop', a.stop)
    outdate(rid)
  end
end

local function row(r, doc)
  return {doc or call('HGET', r.key, 'doc'), whole(r.version), whole(r.epoch), whole(r.entry), r.owner, whole(r.fence),
    stamp(r.lease)}
end

-- A message is sent from now: the epoch to send it under. The version rises, so that of several who saw the same, one
-- sends. While a message of the present epoch is out that nobody has taken, the epoch stays, and the time of its first
-- sending: under a backlog a new epoch would make stale what is merely slow, and put it at the end of the queue, for ever.
-- Further fields of the hash are written with it.
local function sent_out(r, ...)
  -- The longer it is out, or others have lately waited, the longer the next sending waits: with no worker at work, a
  -- backlog is not multiplied either. What waited while none lived says nothing of the next one, and that may be lost.
  local waited = 2 * (tonumber(call('GET', P .. 'queue_wait') or '0') or 0)
  local sent = r.sent
  if sent == '' then
    r.epoch = r.epoch + 1
    sent = stamp(now)
  else
    call('HINCRBY', P .. 'counts', 'resent', 1)
  end
  r.version = number_after(r.version)
  call('HSET', r.key, 'version', whole(r.version), 'epoch', whole(r.epoch), 'sent', sent, 'lane', '', 'owner', '',
    'lease', '0', ...)
  unown(r)
  place(r, now + math.max(a.grace, math.min(math.max(waited, now - tonumber(sent)), a.longest)), '')
  return r.epoch
end
