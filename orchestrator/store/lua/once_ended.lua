local key = P .. 'once:' .. a.key
if call('EXISTS', key) == 0 then return end
if a.how == 'forgotten' then
  call('DEL', key)
elseif a.how == 'done' then
  call('HSET', key, 'id', a.id, 'until', 'done')
else
  call('HSET', key, 'until', '0')
end
