-- ARGV: ..., version that was read or '', token of our lock or '', touched (1 or 0),
--       state to tell of or '', state, how many fields, (field of the run, value)...,
--       how many kinds to clear, (number of a key, start of its fields)...,
--       (number of a key, field, 1 to set or 0 to delete, value)...
-- Returns whether that was done: not if the run is another than was read, or locked.
local head = read_head()
if not head or locked(head.lock, ARGV[5]) then
  return 0
end
-- Once it has written, a script can go on in a server without memory: runs can be cancelled there.
if ARGV[5] ~= '' or ARGV[7] ~= '' then
  redis.call('HDEL', RUN, 'lock')
end
if ARGV[4] ~= '' and number(ARGV[4]) ~= head.version then
  return 0
end
local now, told = clock(), ARGV[7]
local fields, kinds = {}, 10 + 2 * ARGV[9]
for i = 10, kinds - 1, 2 do
  fields[#fields + 1] = ARGV[i]
  fields[#fields + 1] = ARGV[i] == 'ended' and ARGV[i + 1] ~= '' and now or ARGV[i + 1]
end
local rows = kinds + 1 + 2 * ARGV[kinds]
for i = kinds + 1, rows - 1, 2 do
  local key, start = KEYS[number(ARGV[i])], ARGV[i + 1]
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if name ~= SENTINEL and name:sub(1, #start) == start then
      redis.call('HDEL', key, name)
    end
  end
end
for i = rows, #ARGV, 4 do
  local key = KEYS[number(ARGV[i])]
  if ARGV[i + 2] == '1' then
    redis.call('HSET', key, ARGV[i + 1], ARGV[i + 3])
  else
    redis.call('HDEL', key, ARGV[i + 1])
  end
end
head.state = ARGV[8]
save(head, fields, ARGV[6] == '1' and now or nil)
if told ~= '' then
  redis.call('PUBLISH', ARGV[3] .. 'changed', told)
  if told ~= 'RUNNING' then
    redis.call('PUBLISH', ARGV[3] .. 'ended', told)
  end
end
return 1
