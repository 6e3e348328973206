local lanes = {}
for _, lane in ipairs(call('SMEMBERS', P .. 'lanes')) do
  if call('ZCOUNT', P .. 'look:' .. lane, '-inf', stamp(now)) > 0 then lanes[#lanes + 1] = lane end
end
return lanes
