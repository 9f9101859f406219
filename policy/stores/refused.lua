-- Refusals per address of the minutes that are over, by the clock that counted them.
--
-- KEYS: 1 refusals per address and minute
-- ARGV: 1 clock override
-- Returns {minute|address, count, …}
local minute = math.floor(clock(ARGV[1]) / 60000)
local reply = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if tonumber(string.match(all[i], '^%d+')) < minute then
    reply[#reply + 1] = all[i]
    reply[#reply + 1] = all[i + 1]
  end
end
return reply
