-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: address, slot, failure, generation, token, attempt, final (1 or 0), ttl ms, result ttl ms,
--       channels, (step, member, width, loud (1 or 0))...
-- Returns {recorded, died, (1 to report it + 2 if settled, for each step)...}.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen', 'ender')
local state = run[1]
if not state or run[2] ~= ARGV[4] then
  return {0, 0}
end
local address, token, final = ARGV[1], ARGV[5], ARGV[7] == '1'
local answer = {0, 0}
if state == 'FAILED' and run[3] == token then
  answer[2] = 1
end
local code = ARGV[6] * 2 + ARGV[7]
local known = redis.call('HGET', KEYS[4], 'attempt:' .. address)
if not known or tonumber(known) < code then
  answer[1] = 1
  local clock = redis.call('TIME')
  local now = clock[1] .. '.' .. string.format('%06d', clock[2])
  redis.call('HSET', KEYS[4], 'attempt:' .. address, code, 'failure:' .. address, ARGV[3])
  if (redis.call('HGET', KEYS[5], address) or '!'):sub(1, 1) ~= '!' then
    redis.call('HDEL', KEYS[5], address)
  end
  redis.call('HSET', KEYS[1], 'updated', now)
  if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
    redis.call('HSET', KEYS[4], 'finished:' .. address, '1')
  else
    if known then
      redis.call('HINCRBY', KEYS[1], known % 2 == 1 and 'dead' or 'failing', -1)
    end
    redis.call('HINCRBY', KEYS[1], final and 'dead' or 'failing', 1)
    if final and state == 'RUNNING' then
      state, answer[2] = 'FAILED', 1
      redis.call('HSET', KEYS[1], 'state', state, 'ended', now, 'ender', token)
      redis.call('PUBLISH', ARGV[10] .. 'ended', state)
    end
  end
  redis.call('PUBLISH', ARGV[10] .. 'changed', address)
end
for i = 11, #ARGV, 4 do
  local step, told = ARGV[i], 0
  if redis.call('SADD', KEYS[7], step .. '/' .. ARGV[i + 1]) == 1 then
    redis.call('HINCRBY', KEYS[4], 'settled:' .. step, 1)
  end
  if ARGV[i + 3] == '1' then
    redis.call('HSET', KEYS[4], 'failed:' .. step, '1')
  end
  local marks = redis.call('HMGET', KEYS[4], 'settled:' .. step, 'failed:' .. step)
  if tonumber(marks[1]) >= tonumber(ARGV[i + 2]) then
    redis.call('HSETNX', KEYS[4], 'full:' .. step, token)
    told = redis.call('HGET', KEYS[4], 'full:' .. step) == token and 2 or 0
    if marks[2] then
      redis.call('HSETNX', KEYS[4], 'reported:' .. step, token)
      told = told + (redis.call('HGET', KEYS[4], 'reported:' .. step) == token and 1 or 0)
    end
  end
  answer[#answer + 1] = told
end
local ttl = state == 'RUNNING' and ARGV[8] or ARGV[9]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return answer
