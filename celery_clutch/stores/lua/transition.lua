-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: target, generation, ttl ms, result ttl ms, channels, source...
-- Returns 1 if the run moved.
local run = redis.call('HMGET', KEYS[1], 'state', 'gen', 'left')
if not run[1] or run[2] ~= ARGV[2] then
  return 0
end
local allowed = false
for i = 6, #ARGV do
  allowed = allowed or ARGV[i] == run[1]
end
if not allowed then
  return 0
end
local clock = redis.call('TIME')
local now = clock[1] .. '.' .. string.format('%06d', clock[2])
local state = ARGV[1]
redis.call('HDEL', KEYS[1], 'ended', 'ender')
if state == 'RUNNING' then
  redis.call('HINCRBY', KEYS[1], 'gen', 1)
  redis.call('HSET', KEYS[1], 'failing', 0, 'dead', 0)
  -- What is held outlives the generation; every other mark belongs to it.
  for _, mark in ipairs(redis.call('HKEYS', KEYS[4])) do
    if mark:sub(1, 5) ~= 'held:' then
      redis.call('HDEL', KEYS[4], mark)
    end
  end
  redis.call('DEL', KEYS[7])
  local jobs = redis.call('HGETALL', KEYS[5])
  for i = 1, #jobs, 2 do
    if jobs[i + 1]:sub(1, 1) ~= '!' then
      redis.call('HDEL', KEYS[5], jobs[i])
    end
  end
  if run[3] == '0' then
    state = 'SUCCEEDED'
  end
end
redis.call('HSET', KEYS[1], 'state', state, 'updated', now)
if state ~= 'RUNNING' then
  redis.call('HSET', KEYS[1], 'ended', now)
  redis.call('PUBLISH', ARGV[5] .. 'ended', state)
end
redis.call('PUBLISH', ARGV[5] .. 'changed', state)
local ttl = state == 'RUNNING' and ARGV[3] or ARGV[4]
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return 1
