-- Prolong the leases of requests that are still being answered, and note how far each has come.
--
-- KEYS: 1 reservations, 2 leases, 3 progress
-- ARGV: 1 clock override, 2 lease in ms, then pairs: request id, completion tokens so far
local now = clock(ARGV[1])
for i = 3, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[2], 'XX', now + tonumber(ARGV[2]), ARGV[i])
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
  end
end
return (#ARGV - 2) / 2
