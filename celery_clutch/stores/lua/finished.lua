-- KEYS: results. ARGV: address... Returns for each whether it has a result, without reading that.
local found = {}
for i, address in ipairs(ARGV) do
  found[i] = redis.call('HEXISTS', KEYS[1], address)
end
return found
