-- KEYS: record, pages, results, marks
-- ARGV: channel
-- Returns whether there was a run.
local existed = redis.call('EXISTS', KEYS[1])
redis.call('UNLINK', unpack(KEYS))
redis.call('PUBLISH', ARGV[1], '')
return existed
