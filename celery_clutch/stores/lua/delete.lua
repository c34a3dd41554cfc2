-- Returns whether there was a run.
local existed = redis.call('EXISTS', RUN)
redis.call('UNLINK', unpack(KEYS, 1, OWN))
redis.call('PUBLISH', ARGV[3] .. 'ended', '')
redis.call('PUBLISH', ARGV[3] .. 'changed', '')
return existed
