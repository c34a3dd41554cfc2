-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: meta, units, name, tags (JSON), ttl ms, result ttl ms, jobs, how many pages,
--       (page key, page)..., (data key, data)...
-- Returns 1, or 0 if the run exists.
local clock = redis.call('TIME')
local now = clock[1] .. '.' .. string.format('%06d', clock[2])
if redis.call('HSETNX', KEYS[1], 'gen', '0') == 0 then
  return 0
end
-- A server that evicts keys may have left some of an older run.
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
local state, ttl = 'RUNNING', ARGV[5]
if ARGV[2] == '0' then
  state, ttl = 'SUCCEEDED', ARGV[6]
  redis.call('HSET', KEYS[1], 'ended', now)
end
redis.call('HSET', KEYS[1], 'state', state, 'left', ARGV[2], 'done', 0, 'failing', 0, 'dead', 0,
  'created', now, 'updated', now, 'meta', ARGV[1], 'name', ARGV[3], 'tags', ARGV[4], 'jobs', ARGV[7])
local pages = 8 + 2 * ARGV[8]
for i = 9, #ARGV, 2 do
  redis.call('HSET', i < pages and KEYS[2] or KEYS[6], ARGV[i], ARGV[i + 1])
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
return 1
