-- Refusals past the rate, and answers for anybody, per address, of the minutes that are over, by the clock that counted
-- them.
--
-- KEYS: 1 refusals per address and minute
-- ARGV: 1 clock override
-- Returns {minute|address or minute|address|open, count, …}. What only says who has had how many rows is of no use any more, and dropped.
local LATE_MS = 10000 -- the clocks of a cluster's nodes may differ: a minute is written once, when it is over for all
local minute = math.floor((clock(ARGV[1]) - LATE_MS) / 60000)
local reply = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local kind, counted = string.match(all[i], '^(%l*)|?(%d+)|')
  if tonumber(counted) < minute then
    if kind ~= '' then
      redis.call('HDEL', KEYS[1], all[i])
    else
      reply[#reply + 1] = all[i]
      reply[#reply + 1] = all[i + 1]
    end
  end
end
return reply
