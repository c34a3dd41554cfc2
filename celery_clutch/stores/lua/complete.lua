-- KEYS: record, pages, results, marks
-- ARGV: address, slot, value, generation, token, job (1 or 0), ttl ms, result ttl ms, channel,
--       [step, member, width]
-- Returns {remaining or -1, fresh, succeeded, report}.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen', 'left')
local state, left = run[1], tonumber(run[3])
if not state then
  return {-1, 0, 0, 0}
end
local address, token = ARGV[1], ARGV[5]
local succeeded = 0
local fresh = redis.call('HSETNX', KEYS[3], ARGV[2], ARGV[3])
if fresh == 1 then
  left = redis.call('HINCRBY', KEYS[1], 'left', -1)
  local clock = redis.call('TIME')
  local now = clock[1] .. '.' .. string.format('%06d', clock[2])
  if ARGV[6] == '1' then
    redis.call('HINCRBY', KEYS[1], 'done', 1)
  end
  redis.call('HDEL', KEYS[4], 'starts:' .. address, 'held:' .. address)
  local attempt = redis.call('HGET', KEYS[4], 'attempt:' .. address)
  if attempt and redis.call('HSETNX', KEYS[4], 'finished:' .. address, '1') == 1 then
    redis.call('HINCRBY', KEYS[1], attempt % 2 == 1 and 'dead' or 'failing', -1)
    if state == 'FAILED' and redis.call('HGET', KEYS[1], 'dead') == '0' then
      state = 'RUNNING'
      redis.call('HSET', KEYS[1], 'state', state)
      redis.call('HDEL', KEYS[1], 'ended')
    end
  end
  redis.call('HSET', KEYS[1], 'updated', now)
  if left == 0 and state == 'RUNNING' then
    state, succeeded = 'SUCCEEDED', 1
    redis.call('HSET', KEYS[1], 'state', state, 'ended', now, 'ender', token)
    redis.call('PUBLISH', ARGV[9], state)
  end
elseif state == 'SUCCEEDED' and redis.call('HGET', KEYS[1], 'ender') == token then
  succeeded = 1
end
local report = 0
if ARGV[10] and ARGV[4] == run[2] then
  local step = ARGV[10]
  if redis.call('HSETNX', KEYS[4], 'settled:' .. step .. '/' .. ARGV[11], '1') == 1 then
    redis.call('HINCRBY', KEYS[4], 'settled:' .. step, 1)
  end
  local marks = redis.call('HMGET', KEYS[4], 'settled:' .. step, 'failed:' .. step)
  if marks[2] and tonumber(marks[1]) >= tonumber(ARGV[12]) then
    redis.call('HSETNX', KEYS[4], 'reported:' .. step, token)
    if redis.call('HGET', KEYS[4], 'reported:' .. step) == token then
      report = 1
    end
  end
end
local ttl = state == 'RUNNING' and ARGV[7] or ARGV[8]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return {left, fresh, succeeded, report}
