return call('ZRANGEBYSCORE', P .. 'due', '-inf', stamp(now), 'LIMIT', 0, a.limit)
