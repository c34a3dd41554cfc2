-- KEYS: record, pages, results, marks, jobs, data, members
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
  local known = redis.call('HGET', KEYS[5], ARGV[1])
  local starts = known and tonumber(known:match('^%d+')) or 0
  answer = 4
  if starts < tonumber(ARGV[4]) then
    answer = 1
    local clock = redis.call('TIME')
    local now = clock[1] .. '.' .. string.format('%06d', clock[2])
    redis.call('HSET', KEYS[5], ARGV[1], starts + 1 .. ' ' .. now)
  end
end
local ttl = run[1] == 'RUNNING' and ARGV[5] or ARGV[6]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return answer
