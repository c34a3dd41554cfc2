-- ARGV: ..., token, seconds
-- Has the run to itself for so long; returns its fields, or nil if somebody else has it.
if redis.call('EXISTS', RUN) == 0 then
  return {}
end
if locked(redis.call('HGET', RUN, 'lock'), ARGV[4]) then
  return false
end
redis.call('HSET', RUN, 'lock', ARGV[4] .. ' ' .. string.format('%.6f', clock() + ARGV[5]))
return redis.call('HGETALL', RUN)
