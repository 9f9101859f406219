-- Open one browser session, if its client address, its fingerprint and its tenant have room for it. One step.
--
-- KEYS: 1 the session's scope, 2 live sessions of its fingerprint (zset, by end), 3 live sessions of its tenant (zset),
--       4 scope of its address for sessions opened, 5 refusals per address and minute (hash)
-- ARGV: 1 clock override in ms or '', 2 session id, 3 lifetime in ms, 4 sessions an address may open in a minute,
--       5 live sessions of a fingerprint, 6 live sessions of the tenant, 7 client address,
--       8 refusals recorded one by one per address and minute, then pairs of what to remember of the session
-- Returns {verdict, wait in ms, '1' if the refusal was only counted}. Only sessions that are opened count.

local now = clock(ARGV[1])
local id, ends = ARGV[2], now + tonumber(ARGV[3])
local verdict, wait = 'ok', 0

if redis.call('EXISTS', KEYS[1]) == 1 then return {'ok', 0, 0} end -- a call is repeated where a connection broke

local address = load(KEYS[4])
slide(KEYS[4], address, now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)

local function until_first_ends(live)
  local first = redis.call('ZRANGE', live, 0, 0, 'WITHSCORES')
  return math.max(1000, tonumber(first[2]) - now)
end

if address.rs + 1 > tonumber(ARGV[4]) then
  verdict, wait = 'session_address_rate', wait_for(KEYS[4], address, now, 1, address.rs + 1 - tonumber(ARGV[4]))
elseif redis.call('ZCARD', KEYS[2]) + 1 > tonumber(ARGV[5]) then
  verdict, wait = 'session_live', until_first_ends(KEYS[2])
elseif redis.call('ZCARD', KEYS[3]) + 1 > tonumber(ARGV[6]) then
  verdict, wait = 'session_live_tenant', until_first_ends(KEYS[3])
end

if verdict == 'ok' then
  count_request(address)
  save(KEYS[4], address)
  redis.call('PEXPIRE', KEYS[4], WINDOW_MS * 2)
  local day, month = calendar(now)
  redis.call('HSET', KEYS[1], 'dd', day, 'd', 0, 'mm', month, 'm', 0, 'tot', 0, 'from', now, 'ends', ends)
  redis.call('HSET', KEYS[1], unpack(ARGV, 9))
  redis.call('PEXPIREAT', KEYS[1], ends)
  for _, live in ipairs({KEYS[2], KEYS[3]}) do
    redis.call('ZADD', live, ends, id)
    -- With the last of them the set goes too; lifetimes may differ, so it never ends earlier than it did.
    if redis.call('PTTL', live) < ends - now then redis.call('PEXPIREAT', live, ends + 1000) end
  end
  return {verdict, 0, 0}
end

return {verdict, wait, flooded(KEYS[5], now, ARGV[7], ARGV[8], 'session')}
