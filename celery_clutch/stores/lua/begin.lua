-- ARGV: ..., address, "generation owner limit turn attempts-before page lapsed", receipt...
-- Returns the verdict (1 run, 2 done, 3 drop, 4 give up, 5 busy), or {verdict, held or owner}; nil if
-- locked.
local generation, name, limit, turn, before, page, lapsed =
  ARGV[5]:match('^(%-?%d+) (%S+) (%d+) (%d+) (%d+) (%S*) (%S*)$')
local head = read_head()
if not head or head.state == 'CANCELLED' or head.generation ~= number(generation) then
  return 3
end
if locked(head.lock) then
  return false
end
local address, now = ARGV[4], clock()
turn = number(turn)
local done = redis.call('HEXISTS', RESULTS, address) == 1
local marks = redis.call('HMGET', MARKS, 'failure:' .. address, 'held:' .. address)
local lease = redis.call('HGET', LEASES, address)

local function decide()
  if done then
    return 2
  end
  if head.state == 'SUCCEEDED' then
    return 3
  end
  if marks[1] then
    local attempt, final = failure_flags(marks[1])
    if final or attempt > number(before) then
      return 3
    end
  end
  if marks[2] then
    return {1, marks[2]}
  end
  local lapses = 0
  if lease then
    local owner, began, known = lease:match('^([^ ]*) (%d+) (%d+) ')
    known = number(known)
    if turn > number(began) then
      lapses = known
    elseif owner == lapsed or owner == '-' then -- dead, or it let go
      lapses = known + 1
    else
      return {5, owner}
    end
    if lapses >= number(limit) then
      return 4
    end
  end
  local row = table.concat({name, turn, lapses, now, page}, ' ')
  redis.call('HSET', LEASES, address, row)
  return 1
end

local answer = decide()
if ARGV[6] then
  redis.call('HDEL', DUE, unpack(ARGV, 6))
end
save(head, {}, now)
return answer
