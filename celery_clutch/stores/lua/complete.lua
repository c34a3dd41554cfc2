-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: address, slot, value, generation, token, job (1 or 0), ttl ms, result ttl ms, channels,
--       info, step or '', member, width, barrier or '', width,
--       (key of a change, 1 to set or 0 to delete, value)...
-- Returns {remaining or -1, fresh, succeeded, report, settled, joined}.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen', 'left')
local state, left = run[1], tonumber(run[3])
if not state then
  return {-1, 0, 0, 0, 0, 0}
end
local address, token, current = ARGV[1], ARGV[5], ARGV[4] == run[2]
local step, barrier = ARGV[11], ARGV[14]
local counts = barrier ~= '' and current -- whether the slot is to be counted in the barrier
local succeeded, report, settled, joined = 0, 0, 0, 0
local fresh = redis.call('HSETNX', KEYS[3], ARGV[2], ARGV[3])
if fresh == 1 then
  left = redis.call('HINCRBY', KEYS[1], 'left', -1)
  local clock = redis.call('TIME')
  local now = clock[1] .. '.' .. string.format('%06d', clock[2])
  if ARGV[6] == '1' then
    redis.call('HINCRBY', KEYS[1], 'done', 1)
  end
  -- The generation in which the slot was counted stands before the info.
  redis.call('HSET', KEYS[5], address, '!' .. (counts and run[2] or '') .. ' ' .. ARGV[10])
  redis.call('HDEL', KEYS[4], 'held:' .. address)
  for i = 16, #ARGV, 3 do
    if ARGV[i + 1] == '1' then
      redis.call('HSET', KEYS[6], ARGV[i], ARGV[i + 2])
    else
      redis.call('HDEL', KEYS[6], ARGV[i])
    end
  end
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
    redis.call('PUBLISH', ARGV[9] .. 'ended', state)
  end
  redis.call('PUBLISH', ARGV[9] .. 'changed', address)
else
  if state == 'SUCCEEDED' and redis.call('HGET', KEYS[1], 'ender') == token then
    succeeded = 1
  end
  if counts then
    local known = redis.call('HGET', KEYS[5], address) or ''
    local before, info = known:match('^!(%d*) (.*)$')
    counts = before ~= run[2]
    if counts then
      redis.call('HSET', KEYS[5], address, '!' .. run[2] .. ' ' .. (info or ''))
    end
  end
end
if counts then
  if redis.call('HINCRBY', KEYS[4], 'joined:' .. barrier, 1) == tonumber(ARGV[15]) then
    redis.call('HSET', KEYS[4], 'opener:' .. barrier, address)
    joined = 1
  end
elseif barrier ~= '' and current and
    redis.call('HGET', KEYS[4], 'opener:' .. barrier) == address then
  joined = 1
end
if step ~= '' and current then
  if redis.call('SADD', KEYS[7], step .. '/' .. ARGV[12]) == 1 then
    redis.call('HINCRBY', KEYS[4], 'settled:' .. step, 1)
  end
  local marks = redis.call('HMGET', KEYS[4], 'settled:' .. step, 'failed:' .. step)
  if tonumber(marks[1]) >= tonumber(ARGV[13]) then
    redis.call('HSETNX', KEYS[4], 'full:' .. step, token)
    settled = redis.call('HGET', KEYS[4], 'full:' .. step) == token and 1 or 0
    if marks[2] then
      redis.call('HSETNX', KEYS[4], 'reported:' .. step, token)
      report = redis.call('HGET', KEYS[4], 'reported:' .. step) == token and 1 or 0
    end
  end
end
local ttl = state == 'RUNNING' and ARGV[7] or ARGV[8]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return {left, fresh, succeeded, report, settled, joined}
