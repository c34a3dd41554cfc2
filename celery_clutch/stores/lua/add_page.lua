-- KEYS: record, pages, results, marks, jobs, data, members
-- ARGV: key, page
-- Returns 1, or 0 if there is no such run. The run's other pages give the key its time to live.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
