-- ARGV: ..., address, generation, owner, limit, turn, attempts before, page, lapsed, receipt...
-- Returns {verdict (1 run, 2 done, 3 drop, 4 give up, 5 busy), held or owner}; nil if locked.
local head = read_head()
if not head or head.state == 'CANCELLED' or head.generation ~= number(ARGV[5]) then
  return {3}
end
if locked(head.lock) then
  return false
end
local address, turn, now = ARGV[4], number(ARGV[8]), clock()
local done = redis.call('HEXISTS', RESULTS, address) == 1
local marks = redis.call('HMGET', MARKS, 'failure:' .. address, 'held:' .. address)
local lease = redis.call('HGET', LEASES, address)

local function decide()
  if done then
    return {2}
  end
  if marks[1] then
    local attempt, final = failure_flags(marks[1])
    if final or attempt > number(ARGV[9]) then
      return {3}
    end
  end
  if marks[2] then
    return {1, marks[2]}
  end
  local lapses = 0
  if lease then
    local owner, began, before = lease:match('^([^ ]*) (%d+) (%d+) ')
    before = number(before)
    if turn > number(began) then
      lapses = before
    elseif owner == ARGV[11] or owner == '-' then -- dead, or it let go
      lapses = before + 1
    else
      return {5, owner}
    end
    if lapses >= number(ARGV[7]) then
      return {4}
    end
  end
  local row = table.concat({ARGV[6], turn, lapses, now, ARGV[10]}, ' ')
  redis.call('HSET', LEASES, address, row)
  return {1}
end

local answer = decide()
if ARGV[12] then
  redis.call('HDEL', DUE, unpack(ARGV, 12))
end
save(head, {}, now)
return answer
