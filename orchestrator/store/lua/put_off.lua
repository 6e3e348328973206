-- What is due and cannot be read is looked at again later; what has no record at all is due no more.
for _, m in ipairs(a.members) do
  local rid, sid = string.match(m, '^([^/]*)/(.*)$')
  if rid and call('EXISTS', P .. 'sv:' .. rid .. ':' .. sid) == 1 then
    call('ZADD', P .. 'due', 'XX', stamp(now + a.seconds), m)
  else
    call('ZREM', P .. 'due', m)
  end
end
