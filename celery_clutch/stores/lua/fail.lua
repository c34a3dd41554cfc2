-- ARGV: ..., address, generation, failure, attempt, final (1 or 0), token, retry or '', since when,
--       how many steps, (step, member, width, loud (1 or 0))...,
--       (parallel, branch, limit, width)...
-- Returns {recorded, died, settled, due, pages}; nil if locked; 0 where the rules have to decide:
-- the run is marked so, or all is done or skipped.
local head = read_head()
if not head then
  return {0, 0, {}, {}, {}}
end
if locked(head.lock) then
  return false
end
local address, token, retry = ARGV[4], ARGV[9], ARGV[10]
local attempt, final = number(ARGV[7]), ARGV[8] == '1'
local event = {head = head, cause = address, made = {}, settled = {}}
local marks = redis.call('HMGET', MARKS, 'failure:' .. address, 'barrier:unusual')
local known = marks[1]
local finished = redis.call('HEXISTS', RESULTS, address) == 1
if marks[2] or head.left == 0 and not finished then
  return 0
end

-- Record a failure that is news.
local function record()
  if known then
    local _, was_final, was_finished = failure_flags(known)
    if not was_finished then
      count(head, was_final, -1)
    end
  end
  local flags = attempt .. (final and ' 1 ' or ' 0 ') .. (finished and '1' or '0')
  redis.call('HSET', MARKS, 'failure:' .. address, flags .. '\n' .. ARGV[6])
  if not finished then
    count(head, final, 1)
    if ARGV[11] ~= '' and not final and head.state ~= 'CANCELLED' then
      put_due(event, retry, ARGV[11])
    end
    if final and head.state == 'RUNNING' then
      end_run(event, 'FAILED', token)
    end
  end
  local turns = 13 + 4 * ARGV[12]
  for i = 13, turns - 1, 4 do
    settle(event, ARGV[i], ARGV[i + 1], number(ARGV[i + 2]), true, ARGV[i + 3] == '1')
  end
  if final and not finished then
    for i = turns, #ARGV, 4 do
      take_turn(event, ARGV[i], ARGV[i + 1], number(ARGV[i + 2]), number(ARGV[i + 3]), true)
    end
  end
  drain(event)
  local fields = {'failing', head.failing, 'dead', head.dead}
  if head.ended then
    for _, name in ipairs({'state', 'ender', 'ended'}) do
      fields[#fields + 1] = name
      fields[#fields + 1] = head[name]
    end
  end
  save(head, fields, event.now)
  redis.call('PUBLISH', ARGV[3] .. 'changed', address)
end

local current, news, copy = head.generation == number(ARGV[5]), false, false
if current then
  local before, was_final = 0, false
  if known then
    before, was_final = failure_flags(known)
  end
  copy = before == attempt and was_final == final
  -- A job that is dead stays so until it has a result.
  if final then
    news = before < attempt or before == attempt and not was_final
  else
    news = before < attempt and not was_final
  end
end
if news then
  event.now = clock()
  record()
end
local dropped = redis.call('HDEL', LEASES, address) == 1
if dropped and not news then
  save(head, {})
end
if not current then
  return {0, 0, {}, {}, {}}
end
-- What a later attempt has made due, whoever has recorded that one sends.
local due, found = {}, {}
if news then
  found = names(event.made)
elseif copy then
  found = due_of(address)
end
for _, key in ipairs(found) do
  if ARGV[11] == '' or key ~= retry then
    due[#due + 1] = key
  end
end
local died = head.state == 'FAILED' and token ~= '' and head.ender == token
return {news and 1 or 0, died and 1 or 0, event.settled, due, pages_of(due)}
