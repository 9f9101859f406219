-- Settle one reservation by what was used: once, whoever asks and however often.
--
-- KEYS: 1 tenant scope, 2 key scope, 3 reservations, 4 leases, 5 events, 6 epoch, 7 ratios, 8 progress,
--       9 marker of a settlement that outlived the store, then the further scopes of the admission
-- ARGV: 1 clock override, 2 request id, 3 epoch of the grant, 4 prompt tokens (-1: as estimated), 5 completion tokens,
--       6 '1' if exact, 7 event JSON, 8 identity JSON (for a store that lost the reservation), 9 prompt estimate
-- Returns 'settled', 'done' (it already was) or 'late' (the store had lost it; it is charged all the same).

local now = clock(ARGV[1])
local id = ARGV[2]
local held = redis.call('HGET', KEYS[3], id)
local prompt, completion = tonumber(ARGV[4]), tonumber(ARGV[5])
local day, month, result

if held then
  local r = cjson.decode(held)
  if prompt < 0 then prompt = r.p end
  day, month, result = r.d, r.m, 'settled'
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[8], id)
  release(KEYS[1], r.r)
  charge(KEYS[1], day, month, now, prompt + completion)
  if r.kc == 1 then
    release(KEYS[2], r.r)
    charge(KEYS[2], day, month, now, prompt + completion)
  end
  for i = 1, #(r.x or {}) do
    release_from(KEYS[9 + i], r.r)
    charge_to(KEYS[9 + i], day, month, now, prompt + completion)
  end
  if ARGV[6] == '1' then learn(KEYS[7], r.model, r.b, prompt) end
else
  if redis.call('GET', KEYS[6]) == ARGV[3] then return 'done' end
  -- Another epoch: the store was lost after the admission. Charge the counters that have been seeded since.
  if not redis.call('SET', KEYS[9], '1', 'NX', 'EX', 86400) then return 'done' end
  if prompt < 0 then prompt = tonumber(ARGV[9]) end
  day, month = calendar(now)
  result = 'late'
  for i = 1, 2 do
    if redis.call('HEXISTS', KEYS[i], 'tot') == 1 then charge(KEYS[i], day, month, now, prompt + completion) end
  end
end
redis.call('XADD', KEYS[5], '*', 'k', 'settle', 'd', day, 'i', held or ARGV[8],
  'u', prompt .. ' ' .. completion .. ' ' .. (ARGV[6] == '1' and 0 or 1), 'e', ARGV[7])
return result
