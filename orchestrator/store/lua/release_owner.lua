-- One batch; again until `more` is 0. An owner holds upgrades, `rid/sid`, and named leases, `=name`.
local found = call('ZRANGEBYLEX', P .. 'owners', '[' .. a.prefix, '(' .. a.prefix .. '\255', 'LIMIT', 0, 50)
local released = 0
for _, m in ipairs(found) do
  local holder, name = string.match(m, '^(.*)\n=(.*)$')
  if name then
    local key = P .. 'lease:' .. name
    if call('HGET', key, 'owner') == holder then call('HSET', key, 'owner', '', 'until', '0') end
  else
    local owner, rid, sid = string.match(m, '^(.*)\n([^/\n]*)/(.*)$')
    local r = load(rid, sid)
    if r and r.owner == owner then
      if live(r) then released = released + 1 end
      local again = now
      if a.died then again = struck(r) end
      call('HSET', r.key, 'owner', '', 'lease', '0', 'lane', '', 'lost', r.lost)
      if not r.rest then place(r, again, '') end
    end
  end
  call('ZREM', P .. 'owners', m)
end
if released > 0 then wake() end
return {released, #found}
