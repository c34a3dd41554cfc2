-- KEYS: ..., where the message for what is next goes, if there is one.
-- ARGV: ..., address, value, token, info, what is next or '', since when, its generation, its message,
--       SETTLES, how many barriers, (name, WIDTH, then or '', SETTLES, TURN)...,
--       (key of a change, 1 to set or 0 to delete, value)...
-- WIDTH is a number, '+' if it counts although it waits for one result, and behind a blank its gate.
-- SETTLES is 0, or 1, step, member, width. TURN is 0, or 1, parallel, branch, limit, width.
-- Returns {"<remaining or -1> <fresh> <generation> <succeeded>", settled, due, pages}, of which the text
-- alone if the rest is empty; nil if locked; 0 where the rules have to decide: the run is marked so, or
-- all its jobs are done or skipped.
local head = read_head()
if not head then
  return '-1 0 0 0'
end
if locked(head.lock) then
  return false
end
local address, token = ARGV[4], ARGV[6]
local event = {head = head, cause = address, made = {}, settled = {}}

local function answer(fresh, due)
  local succeeded = head.state == 'SUCCEEDED' and token ~= '' and head.ender == token
  local numbers = table.concat({head.left, fresh, head.generation, succeeded and 1 or 0}, ' ')
  if #due == 0 and #event.settled == 0 then
    return numbers
  end
  return {numbers, event.settled, due, pages_of(due)}
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

-- Arguments are read one after another.
local at = 12
local function take()
  at = at + 1
  return ARGV[at - 1]
end

local function take_settles()
  if take() == '1' then
    return {take(), take(), number(take())}
  end
end

local function take_barrier()
  local barrier = {name = take()}
  local width, grows, gate = take():match('^(%d+)(%+?) ?(.*)$')
  barrier.width, barrier.counts, barrier.gate = number(width), grows == '+', gate
  barrier.after = take()
  barrier.settles = take_settles()
  if take() == '1' then
    barrier.turn = {take(), take(), number(take()), number(take())}
  end
  return barrier
end

local function open(barrier)
  if barrier.settles then
    settle(event, unpack(barrier.settles))
  end
  if barrier.turn then
    take_turn(event, unpack(barrier.turn))
  end
  if barrier.after ~= '' and head.state ~= 'CANCELLED' then
    put_due(event, barrier.after, event.now)
  end
end

local marks = redis.call('HMGET', MARKS, 'failure:' .. address, 'held:' .. address,
  'barrier:unusual')
if marks[3] or head.left == 0 and redis.call('HEXISTS', RESULTS, address) == 0 then
  return 0
end
if redis.call('HSETNX', RESULTS, address, ARGV[5]) == 0 then
  return answer(0, due_of(address))
end
event.now = clock()
redis.call('HSET', JOBS, address, ARGV[7])
redis.call('HDEL', LEASES, address)
if marks[2] then
  drop_checkpoint()
end
if marks[1] and (head.failing ~= 0 or head.dead ~= 0) then
  finish(marks[1])
end
if ARGV[9] ~= '' and head.state ~= 'CANCELLED' then
  put_due(event, ARGV[8], ARGV[9])
  if KEYS[OWN + 1] and head.generation == number(ARGV[10]) then
    redis.call('LPUSH', KEYS[OWN + 1], ARGV[11])
    event.made[ARGV[8]] = nil -- nobody has to send it
  end
end
local alone = take_settles()
if alone then
  settle(event, unpack(alone))
end
local gates = {[''] = true}
for _ = 1, number(take()) do
  local barrier = take_barrier()
  local width = barrier.width
  if gates[barrier.gate] then
    local counted = width > 1 or barrier.counts
    if not counted or redis.call('HINCRBY', MARKS, 'barrier:' .. barrier.name, 1) == width then
      gates[barrier.name] = true
      open(barrier)
    end
  end
end
while ARGV[at] do
  local name, known, value = take(), take(), take()
  if known == '1' then
    redis.call('HSET', DATA, name, value)
  else
    redis.call('HDEL', DATA, name)
  end
end
head.left = head.left - 1
if head.left == 0 and head.state == 'RUNNING' then
  end_run(event, 'SUCCEEDED', token)
end
drain(event)
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
