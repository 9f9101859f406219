-- The reservations whose lease is over: nobody is left to settle them but the sweeper.
--
-- KEYS: 1 reservations, 2 leases, 3 progress
-- ARGV: 1 clock override, 2 how many at most
-- Returns {id, identity JSON, completion tokens so far, …}
local now = clock(ARGV[1])
local reply = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  local text = redis.call('HGET', KEYS[1], id)
  if text then
    reply[#reply + 1] = id
    reply[#reply + 1] = held(text).identity
    reply[#reply + 1] = redis.call('HGET', KEYS[3], id) or '0'
  else
    redis.call('ZREM', KEYS[2], id)
  end
end
return reply
