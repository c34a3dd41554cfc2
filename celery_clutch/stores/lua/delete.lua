-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: channels
-- Returns whether there was a run.
local existed = redis.call('EXISTS', KEYS[1])
redis.call('UNLINK', unpack(KEYS))
redis.call('PUBLISH', ARGV[1] .. 'ended', '')
redis.call('PUBLISH', ARGV[1] .. 'changed', '')
return existed
