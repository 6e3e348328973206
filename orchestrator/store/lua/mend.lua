-- Makes the agendas, and what scripts read of a record, agree with these records. Answers server and fault in turn.
local lanes = call('SMEMBERS', P .. 'lanes')
local said = {}

local function told(r, what)
  said[#said + 1] = r.sid
  said[#said + 1] = what
end

local function agenda(r, latest)
  local m = member(r)
  for _, lane in ipairs(lanes) do
    if lane ~= r.lane and call('ZREM', P .. 'look:' .. lane, m) == 1 then
      told(r, 'was in the agenda of ' .. lane .. ', which it does not wait in')
    end
  end
  local due = call('ZSCORE', P .. 'due', m)
  local look = r.lane ~= '' and call('ZSCORE', P .. 'look:' .. r.lane, m)
  if r.rest then
    if due or look then
      told(r, 'was in an agenda, and nothing is to happen to it')
      place(r, nil, '')
    end
  elseif live(r) and not due then
    told(r, 'was in no agenda while a worker had it')
    call('HSET', r.key, 'lane', '')
    place(r, r.lease, '')
  elseif not live(r) and due and look then
    told(r, 'was in two agendas')
    call('ZREM', P .. 'due', m)
  elseif not due and not look then
    told(r, 'was in no agenda')
    call('HSET', r.key, 'lane', '')
    place(r, now, '')
  elseif latest and not live(r) and tonumber(due or look) > math.max(now, latest) + a.late then
    told(r, 'was due later than its record asks for')
    place(r, now, due and '' or r.lane)
  elseif look and call('SADD', P .. 'lanes', r.lane) == 1 then
    told(r, 'waited in ' .. r.lane .. ', which nobody looked at')
  end
  if live(r) and call('ZADD', P .. 'owners', 'NX', 0, r.owner .. '\n' .. m) == 1 then
    told(r, 'its lease was not listed under its owner')
  end
end

for _, seen in ipairs(a.rows) do
  local r = load(a.rollout, seen.server)
  if r then
    local latest
    if r.version == seen.version then
      local rest = r.rest and '1' or '0'
      local is = {state = r.state, rest = rest, direction = r.direction, step = r.step, attempts = r.attempts}
      for name, value in pairs(seen.to) do
        if is[name] ~= value then
          told(r, name .. ' was kept as ' .. tostring(is[name]) .. ' beside a record that says ' .. value)
          call('HSET', r.key, name, value)
          is[name] = value
        end
      end
      r.rest = is.rest == '1'
      latest = seen.latest
    end
    agenda(r, latest)
    if call('SADD', P .. 'servers:' .. a.rollout, r.sid) == 1 then told(r, 'was not listed in its rollout') end
  end
end
if #said > 0 then wake() end
return said
