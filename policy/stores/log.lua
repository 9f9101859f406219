-- Take down what Envoy's access log says of finished requests. Refusals past a rate are counted, not kept.
--
-- KEYS: 1 events, 2 refusals per address and minute
-- ARGV: 1 clock override, 2 refusals kept per address and minute, then triples: client address, '1' for a refusal
--       that policy did not record, event JSON
-- Returns how many were only counted.
local now = clock(ARGV[1])
local minute = math.floor(now / 60000)
local counted = 0
for i = 3, #ARGV, 3 do
  if ARGV[i + 1] == '1' and redis.call('HINCRBY', KEYS[2], minute .. '|' .. ARGV[i], 1) > tonumber(ARGV[2]) then
    counted = counted + 1
  else
    redis.call('XADD', KEYS[1], '*', 'k', 'log', 'e', ARGV[i + 2])
  end
end
return counted
