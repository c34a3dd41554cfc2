-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: address, held, ttl ms, result ttl ms
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return 0
end
redis.call('HSET', KEYS[4], 'held:' .. ARGV[1], ARGV[2])
if (redis.call('HGET', KEYS[5], ARGV[1]) or '!'):sub(1, 1) ~= '!' then
  redis.call('HDEL', KEYS[5], ARGV[1])
end
local ttl = state == 'RUNNING' and ARGV[3] or ARGV[4]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return 1
