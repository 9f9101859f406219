-- The reservations whose lease is over: nobody is left to settle them but the sweeper.
--
-- KEYS: 1 reservations, 2 leases, 3 progress
-- ARGV: 1 clock override, 2 how many at most, 3 lease in ms
-- Returns {id, identity JSON, completion tokens so far, completion tokens reserved, when its lease began in ms, …}
local now = clock(ARGV[1])
local reply = {}
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[2]))
for i = 1, #over, 2 do
  local id = over[i]
  local text = redis.call('HGET', KEYS[1], id)
  if text then
    local r = held(text)
    reply[#reply + 1] = id
    reply[#reply + 1] = r.identity
    reply[#reply + 1] = redis.call('HGET', KEYS[3], id) or '0'
    reply[#reply + 1] = math.max(r.reserved - r.prompt, 0)
    reply[#reply + 1] = string.format('%d', tonumber(over[i + 1]) - tonumber(ARGV[3]))
  else
    redis.call('ZREM', KEYS[2], id)
  end
end
return reply
