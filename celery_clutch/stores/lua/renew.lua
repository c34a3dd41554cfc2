-- KEYS: owners
-- ARGV: seconds, seconds for which the last is listed after that, owner...
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local till = string.format('%.6f', now + ARGV[1])
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[1], till, ARGV[i])
end
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if last[2] then
  local expires = (math.max(last[2], now) + ARGV[2]) * 1000
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', expires))
end
return 1
