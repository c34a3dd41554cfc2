-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: counter, lane, after, generation, ttl ms, result ttl ms
-- Returns the number taken, or -1.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen')
if not run[1] or run[1] == 'CANCELLED' or run[2] ~= ARGV[4] then
  return -1
end
local lane = 'lane:' .. ARGV[1] .. '/' .. ARGV[2]
local known = redis.call('HGET', KEYS[4], lane)
local last, number = (known or ' -1'):match('^(.*) (.*)$')
if last == ARGV[3] then
  return tonumber(number)
elseif number ~= ARGV[3] then
  return -1
end
local taken = redis.call('HINCRBY', KEYS[4], 'taken:' .. ARGV[1], 1) - 1
redis.call('HSET', KEYS[4], lane, ARGV[3] .. ' ' .. taken)
local ttl = run[1] == 'RUNNING' and ARGV[5] or ARGV[6]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return taken
