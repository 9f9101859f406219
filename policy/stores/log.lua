-- Take down what Envoy's access log says of finished requests. Refusals past a rate are counted, not kept; so are answers
-- for anybody, which would fill the disk as well.
--
-- KEYS: 1 events, 2 refusals per address and minute, 3 about, 4 which of those were told of lately (zset, by time)
-- ARGV: 1 clock override, 2 refusals kept per address and minute, 3 epoch candidate, 4 '1' where this is read again from
--       a file, then fours: client address, 'request' for a refusal that policy did not record, 'open' for an answer
--       for anybody or '', what names the request, event JSON
-- Returns which of them were news, from 0 on. Those two are told of once, whether they came by the stream, by a call that
-- was repeated or out of the file: of those past the rate nothing else would be known. A flood may fill that memory; then
-- the stream is believed and the file is not.
local REMEMBERED_MS, REMEMBERED = 120000, 200000
local now = clock(ARGV[1])
local news = {}

local function told(request)
  if redis.call('ZSCORE', KEYS[4], request) then return true end
  if redis.call('ZCARD', KEYS[4]) >= REMEMBERED then return ARGV[4] == '1' end
  redis.call('ZADD', KEYS[4], now, request)
  return false
end

epoch_of(KEYS[3], redis.call('HGET', KEYS[3], 'epoch'), ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - REMEMBERED_MS)
for i = 5, #ARGV, 4 do
  local kind = ARGV[i + 1]
  if kind == '' or not told(ARGV[i + 2]) then
    news[#news + 1] = (i - 5) / 4
    if kind == '' or flooded(KEYS[2], now, ARGV[i], ARGV[2], kind) == 0 then
      redis.call('XADD', KEYS[1], '*', 'k', 'log', 'e', ARGV[i + 3])
    end
  end
end
redis.call('PEXPIRE', KEYS[4], REMEMBERED_MS)
return news
