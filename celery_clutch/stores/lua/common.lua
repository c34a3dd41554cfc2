-- Stands before every script about a run.
-- KEYS: run, pages, results, jobs, leases, marks, members, data, due, and what the script names.
-- ARGV: ttl ms of runs, "<of those that succeeded> <of those that failed or were cancelled>", what the names of the run's channels start with, and as it says.
local RUN, PAGES, RESULTS, JOBS, LEASES, MARKS, MEMBERS, DATA, DUE = unpack(KEYS, 1, 9)
local OWN = 9 -- how many keys a run has
-- Every hash but RUN has this field from the start, so that it never vanishes with its time to live.
-- No field of ours is called so: it is not UTF-8.
local SENTINEL = '\255'

local SUCCEEDED_TTL, FAILED_TTL = ARGV[2]:match('^(%d+) (%d+)$')
local TTLS = {
  RUNNING = ARGV[1], SUCCEEDED = SUCCEEDED_TTL, FAILED = FAILED_TTL, CANCELLED = FAILED_TTL,
}

local function number(value)
  return tonumber(value) or error('not a number: ' .. tostring(value))
end

local function clock()
  local time = redis.call('TIME')
  return time[1] .. '.' .. string.format('%06d', time[2])
end

-- What scripts need to know of the run; nil if there is none.
local function read_head()
  local found = redis.call('HMGET', RUN, 'state', 'gen', 'left', 'failing', 'dead', 'ender', 'ends',
    'version', 'expires', 'lock')
  if not found[1] then
    return nil
  end
  return {
    state = found[1], generation = number(found[2]), left = number(found[3]),
    failing = number(found[4]), dead = number(found[5]), ender = found[6], ends = found[7],
    version = number(found[8]), expires = number(found[9]), lock = found[10],
  }
end

-- Whether somebody else than the owner of a token has the run for itself.
local function locked(lock, token)
  if not lock then
    return false
  end
  local owner, till = lock:match('^(%S+) (%S+)$')
  return owner ~= token and number(till) > number(clock())
end

-- Write fields of the run's hash (name, value...). With a time, the run has been touched: renew the
-- times to live, unless they have hardly changed.
local function save(head, fields, now)
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  set('version', head.version + 1)
  if not now then
    redis.call('HSET', RUN, unpack(fields))
    return
  end
  set('updated', now)
  local ttl = number(TTLS[head.state])
  local expires = math.floor(now * 1000) + ttl
  if math.abs(expires - head.expires) * 100 < ttl then
    redis.call('HSET', RUN, unpack(fields))
    return
  end
  expires = string.format('%.0f', expires)
  set('expires', expires)
  redis.call('HSET', RUN, unpack(fields))
  for i = 1, OWN do
    redis.call('PEXPIREAT', KEYS[i], expires)
  end
end

-- An event is {head, now, cause: an address, made: keys made due, settled: a list of steps}.
local function put_due(event, key, since)
  redis.call('HSET', DUE, key, since .. ' 0 ' .. event.cause)
  event.made[key] = true
end

local function end_run(event, state, token)
  local head = event.head
  head.state, head.ender, head.ended = state, token, event.now
  if (' ' .. head.ends .. ' '):find(' ' .. state .. ' ', 1, true) then
    local key = state == 'FAILED' and 'death ' .. event.cause or 'end ' .. state
    put_due(event, key, event.now)
  end
  redis.call('PUBLISH', ARGV[3] .. 'ended', state)
end

-- What still ran when the run failed or was cancelled moves its end.
local function drain(event)
  local head = event.head
  if head.state == 'FAILED' or head.state == 'CANCELLED' then
    head.ended = event.now
  end
end

-- The number in front and the two flags of a failure, and the rest. The second flag is '1' if the
-- job has a result since, '2' if its death is tolerated, else '0'.
local function failure_flags(failure)
  local attempt, final, finished, rest = failure:match('^(%d+) ([01]) ([012])(\n.*)$')
  return number(attempt), final == '1', finished ~= '0', rest
end

local function count(head, final, by)
  local name = final and 'dead' or 'failing'
  head[name] = head[name] + by
end

-- Count a member of a step, once; what follows when the last has settled.
local function settle(event, step, member, width, failed, loud)
  local key, new = step .. '/' .. member, nil
  if failed then
    new = redis.call('HSETNX', MEMBERS, key, 'failed') == 1
  else
    new = redis.call('HSET', MEMBERS, key, 'done') == 1
  end
  local settled
  if new then
    settled = redis.call('HINCRBY', MARKS, 'mark:settled ' .. step, 1)
  else
    settled = number(redis.call('HGET', MARKS, 'mark:settled ' .. step) or 0)
  end
  if loud then
    redis.call('HSET', MARKS, 'mark:failed ' .. step, '1')
  end
  if settled < width then
    return
  end
  if new then
    event.settled[#event.settled + 1] = step
  end
  if event.head.state == 'CANCELLED' then
    return
  end
  local marks = redis.call('HMGET', MARKS, 'mark:failed ' .. step, 'mark:reported ' .. step)
  if marks[1] and not marks[2] then
    redis.call('HSET', MARKS, 'mark:reported ' .. step, '1')
    put_due(event, 'failure ' .. step, event.now)
  end
end

-- A branch is over: the next one of its parallel that is not is due.
local function take_turn(event, address, member, limit, width, dead)
  local own, cancelled, new = 'mark:turn ' .. member, event.head.state == 'CANCELLED', nil
  if not dead then
    new = redis.call('HSET', MARKS, own, 'over') == 1
  elseif not cancelled then
    new = redis.call('HSETNX', MARKS, own, 'dead') == 1
  end
  if cancelled or not new then
    return
  end
  local key = 'mark:taken ' .. address
  local taken = math.max(number(redis.call('HGET', MARKS, key) or 0), math.min(limit, width))
  local over = 'mark:over ' .. address .. '.'
  if event.head.generation > 0 then
    while taken < width and redis.call('HEXISTS', MARKS, over .. taken) == 1 do
      taken = taken + 1
    end
  end
  if taken < width then
    redis.call('HSET', MARKS, key, taken + 1)
    put_due(event, 'page ' .. address .. '/' .. taken, event.now)
  else
    redis.call('HSET', MARKS, key, taken)
    redis.call('HINCRBY', MARKS, 'mark:idle ' .. address, 1)
  end
end

-- The keys of a table.
local function names(made)
  local found = {}
  for key in pairs(made) do
    found[#found + 1] = key
  end
  return found
end

-- What is due with this cause.
local function due_of(cause)
  local found, due = {}, redis.call('HGETALL', DUE)
  for i = 1, #due, 2 do
    if due[i] ~= SENTINEL then
      local from = due[i + 1]:match('^%S+ %d+ (.*)$') or error('not due: ' .. due[i])
      if from == cause then
        found[#found + 1] = due[i]
      end
    end
  end
  return found
end

-- The pages among what is due: key, page...
local function pages_of(due)
  local keys, found = {}, {}
  for _, key in ipairs(due) do
    keys[#keys + 1] = key:match('^page (.*)$')
  end
  for _, key in ipairs(keys) do
    local page = redis.call('HGET', PAGES, key)
    if page then
      found[#found + 1] = key
      found[#found + 1] = page
    end
  end
  return found
end
