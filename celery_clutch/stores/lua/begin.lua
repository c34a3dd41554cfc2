-- KEYS: record, pages, results, marks
-- ARGV: address, slot, generation, limit, ttl ms, result ttl ms
-- Returns the verdict (1 run, 2 done, 3 drop, 4 give up), or what is held for the address.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen')
if not run[1] or run[1] == 'CANCELLED' or run[2] ~= ARGV[3] then
  return 3
end
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
  return 2
end
local answer = redis.call('HGET', KEYS[4], 'held:' .. ARGV[1])
if not answer then
  local starts = redis.call('HINCRBY', KEYS[4], 'starts:' .. ARGV[1], 1)
  answer = starts > tonumber(ARGV[4]) and 4 or 1
end
local ttl = run[1] == 'RUNNING' and ARGV[5] or ARGV[6]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return answer
