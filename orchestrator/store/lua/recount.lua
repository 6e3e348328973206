-- Counters that were counted anew, from records that were all read since the audit log ended at `seen`.
local last = call('XREVRANGE', P .. 'audit:' .. a.rollout, '+', '-', 'COUNT', 1)
if (last[1] and last[1][1] or '0') ~= a.seen then return {} end
local said = {}

local function set(key, wanted, known)
  local stored = call('HGETALL', key)
  local was = {}
  for i = 1, #stored, 2 do was[stored[i]] = stored[i + 1] end
  for name, n in pairs(was) do
    if not known[name] and not wanted[name] and n ~= '0' then
      said[#said + 1] = name .. ' was counted as ' .. n .. ', and is none'
      call('HDEL', key, name)
    end
  end
  for name, n in pairs(wanted) do
    if was[name] ~= whole(n) then
      said[#said + 1] = name .. ' was counted as ' .. (was[name] or 'none') .. ', and is ' .. whole(n)
      call('HSET', key, name, whole(n))
    end
  end
end

set(P .. 'cnt:' .. a.rollout, a.counts, {['failed:before'] = true, ['failed:after'] = true})
set(P .. 'fly:' .. a.rollout, a.domains, {})
if #said > 0 then wake() end
return said
