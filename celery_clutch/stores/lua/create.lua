-- KEYS: ..., and where one script may write both, the index of runs, and the queue of a message
-- ARGV: ..., run, ms after which runs may have expired, state, the message or '',
--       how many fields, (field of the run, value)..., (number of a key, field, value)...
-- Returns nil if the run exists, else {when it was created, runs that may have expired...}.
local now = clock()
if redis.call('HSETNX', RUN, 'created', now) == 0 then
  return false
end
-- A server that evicts keys may have left some of an older run.
redis.call('DEL', unpack(KEYS, 2, OWN))
for i = 2, OWN do
  redis.call('HSET', KEYS[i], SENTINEL, '')
end
local fields = {'ended', ARGV[6] == 'RUNNING' and '' or now}
local rows = 9 + 2 * ARGV[8]
for i = 9, rows - 1 do
  fields[#fields + 1] = ARGV[i]
end
for i = rows, #ARGV, 3 do
  redis.call('HSET', KEYS[number(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
end
save({state = ARGV[6], version = 0, expires = 0}, fields, now)
local index = KEYS[OWN + 1]
if not index then
  return {now}
end
redis.call('ZADD', index, now, ARGV[4])
if KEYS[OWN + 2] then
  redis.call('LPUSH', KEYS[OWN + 2], ARGV[7])
end
-- Longer than any of its runs, unless nothing is engaged for all that time.
redis.call('PEXPIRE', index, 2 * math.max(ARGV[1], SUCCEEDED_TTL, FAILED_TTL))
local horizon = string.format('%.6f', now - ARGV[5] / 1000)
return {now, unpack(redis.call('ZRANGEBYSCORE', index, '-inf', horizon, 'LIMIT', 0, 10))}
