-- KEYS: record, pages, results, marks
-- ARGV: meta, units, name, tags (JSON), ttl ms, result ttl ms, (page key, page)...
-- Returns 1, or 0 if the run exists.
local clock = redis.call('TIME')
local now = clock[1] .. '.' .. string.format('%06d', clock[2])
if redis.call('HSETNX', KEYS[1], 'gen', '0') == 0 then
  return 0
end
-- A server that evicts keys may have left some of an older run.
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
local state, ttl = 'RUNNING', ARGV[5]
if ARGV[2] == '0' then
  state, ttl = 'SUCCEEDED', ARGV[6]
  redis.call('HSET', KEYS[1], 'ended', now)
end
redis.call('HSET', KEYS[1], 'state', state, 'left', ARGV[2], 'done', 0, 'failing', 0, 'dead', 0,
  'created', now, 'updated', now, 'meta', ARGV[1], 'name', ARGV[3], 'tags', ARGV[4])
for i = 7, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return 1
