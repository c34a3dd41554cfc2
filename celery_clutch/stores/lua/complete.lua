-- ARGV: ..., address, value, token, info, what is next or '', since when,
--       step, member, width (0: none),
--       how many barriers, (name, width, then or '', step, member, width (0: none),
--         parallel, branch, limit, width (0: none))...,
--       (key of a change, 1 to set or 0 to delete, value)...
-- Returns {remaining or -1, fresh, generation, succeeded, settled, due, pages}; nil if locked.
local head = read_head()
if not head then
  return {-1, 0, 0, 0, {}, {}, {}}
end
if locked(head.lock) then
  return false
end
local address, token = ARGV[4], ARGV[6]
local event = {head = head, cause = address, made = {}, settled = {}}

local function answer(fresh, due)
  local succeeded = head.state == 'SUCCEEDED' and token ~= '' and head.ender == token
  return {head.left, fresh, head.generation, succeeded and 1 or 0, event.settled, due,
    pages_of(due)}
end

-- The job has its result: its failure no longer counts.
local function finish(failure)
  local attempt, final, _, rest = failure_flags(failure)
  count(head, final, -1)
  redis.call('HSET', MARKS, 'failure:' .. address, attempt .. (final and ' 1 1' or ' 0 1') .. rest)
  if head.state == 'FAILED' and head.dead == 0 then
    head.state, head.ender, head.ended = 'RUNNING', '', ''
  end
end

-- What was put away for the job, and what was reported to it, is over.
local function drop_checkpoint()
  redis.call('HDEL', MARKS, 'held:' .. address)
  local start = 'child:' .. address .. ' '
  for _, mark in ipairs(redis.call('HKEYS', MARKS)) do
    if mark:sub(1, #start) == start then
      redis.call('HDEL', MARKS, mark)
    end
  end
end

local function open(at)
  if ARGV[at + 5] ~= '0' then
    settle(event, ARGV[at + 3], ARGV[at + 4], number(ARGV[at + 5]))
  end
  if ARGV[at + 9] ~= '0' then
    take_turn(event, ARGV[at + 6], ARGV[at + 7], number(ARGV[at + 8]), number(ARGV[at + 9]))
  end
  if ARGV[at + 2] ~= '' and head.state ~= 'CANCELLED' then
    put_due(event, ARGV[at + 2], event.now)
  end
end

if redis.call('HSETNX', RESULTS, address, ARGV[5]) == 0 then
  return answer(0, due_of(address))
end
event.now = clock()
local marks = redis.call('HMGET', MARKS, 'failure:' .. address, 'held:' .. address)
redis.call('HSET', JOBS, address, ARGV[7])
redis.call('HDEL', LEASES, address)
if marks[2] then
  drop_checkpoint()
end
local changes = 14 + 10 * ARGV[13]
for i = changes, #ARGV, 3 do
  if ARGV[i + 1] == '1' then
    redis.call('HSET', DATA, ARGV[i], ARGV[i + 2])
  else
    redis.call('HDEL', DATA, ARGV[i])
  end
end
if marks[1] and (head.failing ~= 0 or head.dead ~= 0) then
  finish(marks[1])
end
if ARGV[9] ~= '' and head.state ~= 'CANCELLED' then
  put_due(event, ARGV[8], ARGV[9])
end
if ARGV[12] ~= '0' then
  settle(event, ARGV[10], ARGV[11], number(ARGV[12]))
end
for i = 14, changes - 1, 10 do
  local width = number(ARGV[i + 1])
  if width == 1 or redis.call('HINCRBY', MARKS, 'barrier:' .. ARGV[i], 1) == width then
    open(i)
  end
end
head.left = head.left - 1
if head.left == 0 and head.state == 'RUNNING' then
  end_run(event, 'SUCCEEDED', token)
end
local fields = {'left', head.left}
if marks[1] then
  for _, name in ipairs({'failing', 'dead'}) do
    fields[#fields + 1] = name
    fields[#fields + 1] = head[name]
  end
end
if head.ended then
  for _, name in ipairs({'state', 'ender', 'ended'}) do
    fields[#fields + 1] = name
    fields[#fields + 1] = head[name]
  end
end
save(head, fields, event.now)
redis.call('PUBLISH', ARGV[3] .. 'changed', address)
return answer(1, names(event.made))
