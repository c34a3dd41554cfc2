-- ARGV: ..., number of a key...
-- Returns the fields of the run and of these keys, as of one moment; {} if there is no run.
local run = redis.call('HGETALL', RUN)
if #run == 0 then
  return {}
end
local found = {run}
for i = 4, #ARGV do
  found[#found + 1] = redis.call('HGETALL', KEYS[number(ARGV[i])])
end
return found
