local names = call('ZRANGEBYSCORE', P .. 'workers', '(' .. stamp(now), '+inf')
local found = {}
for _, name in ipairs(names) do
  found[#found + 1] = name
  found[#found + 1] = call('HGET', P .. 'worker', name)
end
return found
