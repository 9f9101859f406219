-- Settle one reservation by what was used: once, whoever asks and however often.
--
-- KEYS: 1 tenant scope, 2 key scope, 3 reservations, 4 leases, 5 events, 6 about, 7 progress, 8 marker of a settlement
--       that outlived the store, then the further scopes of the admission
-- ARGV: 1 clock override, 2 request id, 3 epoch of the grant, 4 prompt tokens (-1: as estimated), 5 completion tokens,
--       6 '1' if exact, 7 event JSON, 8 identity JSON (for a store that lost the reservation), 9 prompt estimate,
--       10 model, 11 epoch candidate, 12 '1' for the sweeper, who settles nothing but what nobody holds any more
-- Returns 'settled', 'done' (it already was), 'held' (its lease is not over: not the sweeper's) or 'late' (the store
-- had lost it; it is charged all the same).

local now = clock(ARGV[1])
local id, sweeps = ARGV[2], ARGV[12] == '1'
local prompt, completion = tonumber(ARGV[4]), tonumber(ARGV[5])
local day, month, result, identity
local known = redis.call('HGET', KEYS[6], 'epoch')

-- Charge every scope that is there, and give back what was reserved in it. Of a tenant or a key that is not seeded the
-- event in the stream will tell; a session that is gone stays gone. A key that has got limits since is charged too.
local function charge_all(tokens, r)
  for i, key in ipairs(KEYS) do
    if i <= 2 or i > 8 then
      local s = load(key)
      if s.seeded then
        if r and (i ~= 2 or r.key_counts) then release(s, r.reserved) end
        slide(key, s, now)
        charge(s, day, month, tokens)
        save(key, s)
      end
    end
  end
end

local function write_event(kind)
  local used = string.format('%d %d %d', prompt, completion, ARGV[6] == '1' and 0 or 1)
  redis.call('XADD', KEYS[5], '*', 'k', kind, 'd', day, 'u', used, 'i', identity, 'e', ARGV[7])
end

local text = redis.call('HGET', KEYS[3], id)
if text then
  if sweeps and tonumber(redis.call('ZSCORE', KEYS[4], id) or 0) > now then return 'held' end
  local r = held(text)
  if prompt < 0 then prompt = r.prompt end
  day, month, identity, result = r.day, r.month, r.identity, 'settled'
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[7], id)
  charge_all(prompt + completion, r)
  if ARGV[6] == '1' then learn(KEYS[6], ARGV[10], r.bytes, prompt) end
else
  if sweeps then return 'done' end
  if prompt < 0 then prompt = tonumber(ARGV[9]) end
  identity = ARGV[8]
  -- The day of its admission, which nobody has written down here: Envoy's clock tells when it came.
  day, month = calendar(math.min(math.floor(tonumber(cjson.decode(identity).s) / 1000), now))
  if known == ARGV[3] then
    -- Settled before, all but surely. A replica that took over may have missed both the admission and that: the ledger
    -- knows, and takes the first settlement that it sees.
    write_event('again')
    return 'done'
  end
  -- Another life: the store was lost after the admission. Charge the counters that have been seeded since.
  if not redis.call('SET', KEYS[8], '1', 'NX', 'EX', 86400) then return 'done' end
  epoch_of(KEYS[6], known, ARGV[11])
  result = 'late'
  charge_all(prompt + completion)
end
write_event('settle')
return result
