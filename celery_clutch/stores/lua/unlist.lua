-- KEYS: index of runs, and where one script may read both, the first key of each run
-- ARGV: seconds, run...
-- Take runs out of the index that are not there. Without their keys: those that were not there a
-- moment ago, and were listed more than so many seconds ago.
local oldest = redis.call('TIME')[1] - ARGV[1]
for i = 2, #ARGV do
  local gone
  if KEYS[i] then
    gone = redis.call('EXISTS', KEYS[i]) == 0
  else
    local listed = redis.call('ZSCORE', KEYS[1], ARGV[i])
    gone = listed and tonumber(listed) < oldest
  end
  if gone then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return 1
