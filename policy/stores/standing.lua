-- How things stand in all shards at once: for a server that has them all.
--
-- KEYS: the events of each shard, then the leases of each
-- ARGV: 1 clock override, 2 '1' for all of it; else the lengths alone
-- Returns {length of each shard's events…} or {the same as a table, id of the oldest event or '', open reservations,
-- {number of each shard, from 0, with a lease that is over…}}
local shards = #KEYS / 2
local lengths = {}
for i = 1, shards do lengths[i] = redis.call('XLEN', KEYS[i]) end
if ARGV[2] ~= '1' then return lengths end
local now, oldest, open, over = clock(ARGV[1]), nil, 0, {}
for i = 1, shards do
  if lengths[i] > 0 then
    local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
    if first and (not oldest or after(oldest, first[1])) then oldest = first[1] end
  end
  local first = redis.call('ZRANGE', KEYS[shards + i], 0, 0, 'WITHSCORES')
  if first[2] then
    open = open + redis.call('ZCARD', KEYS[shards + i])
    if tonumber(first[2]) <= now then over[#over + 1] = i - 1 end
  end
end
return {lengths, oldest or '', open, over}
