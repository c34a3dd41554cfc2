-- KEYS: owners
-- Returns {the time, {owner, when its time is over...}}.
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local found = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
return {now, found}
