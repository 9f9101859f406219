-- Take down what Envoy's access log says of finished requests. Refusals past a rate are counted, not kept.
--
-- KEYS: 1 events, 2 refusals per address and minute, 3 about
-- ARGV: 1 clock override, 2 refusals kept per address and minute, 3 epoch candidate, then triples: client address,
--       '1' for a refusal that policy did not record, event JSON
-- Returns how many were only counted.
local now = clock(ARGV[1])
local counted = 0
epoch_of(KEYS[3], redis.call('HGET', KEYS[3], 'epoch'), ARGV[3])
for i = 4, #ARGV, 3 do
  if ARGV[i + 1] == '1' and flooded(KEYS[2], now, ARGV[i], ARGV[2]) == 1 then
    counted = counted + 1
  else
    redis.call('XADD', KEYS[1], '*', 'k', 'log', 'e', ARGV[i + 2])
  end
end
return counted
