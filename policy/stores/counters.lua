-- What the scripts share: the counters of one scope (a tenant, a key, a session), the estimator, the store's own clock.
--
-- Fields of a scope's hash:
--   open, n        tokens reserved, and requests under way
--   dd, d, mm, m   the UTC day and month that the next two count for, and the tokens used in each
--   tot            tokens used ever; its absence says that the scope was never made or, of a tenant or a key, never
--                  seeded from PostgreSQL
--   rs, ts         requests and tokens of the window
--   w, rc, tc      its newest bucket of 250 ms, requests and tokens in it
--   q              its older buckets in which anything happened, oldest first: each 20 bytes, see RECORD
-- A window is 240 buckets: a request leaves it 59.75 to 60 s after it came, so that a stated wait is at most 60 s and
-- always enough. The queue is touched when a new bucket begins, and for a wait.
--
-- Time is the store's own clock: the processes that call may disagree about theirs.

local BUCKET_MS, BUCKETS = 250, 240
local WINDOW_MS = BUCKET_MS * BUCKETS
local RECORD, RECORD_BYTES = '>dI4d', 20 -- bucket, requests, tokens

local function clock(override)
  if override ~= '' then return tonumber(override) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- The name of this life of the store, `known` where it has one. A life ends when the store loses its data: a grant of an
-- earlier one is told by it.
local function epoch_of(about, known, candidate)
  if known then return known end
  local t = redis.call('TIME')
  local epoch = candidate .. '.' .. t[1] .. '.' .. t[2] -- the same process may have begun an earlier life too
  redis.call('HSET', about, 'epoch', epoch)
  return epoch
end

-- Days to civil date: the era arithmetic of the proleptic Gregorian calendar, exact for every day we will see.
local function civil_month(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return year * 100 + month
end

-- The UTC day number and the month as yyyymm.
local function calendar(now)
  local day = math.floor(now / 86400000)
  return day, civil_month(day)
end

-- When a month ends, in ms.
local function month_end(day, month)
  local next_day = day
  repeat next_day = next_day + 1 until civil_month(next_day) ~= month
  return next_day * 86400000
end

-- A scope's figures, all of them in one call. `seeded` is false of a scope that is not there.
local function load(key)
  local v = redis.call('HMGET', key, 'tot', 'open', 'n', 'dd', 'd', 'mm', 'm', 'w', 'rs', 'ts', 'rc', 'tc')
  local s = {seeded = v[1] ~= false, changed = false}
  s.tot, s.open, s.n = tonumber(v[1] or 0), tonumber(v[2] or 0), tonumber(v[3] or 0)
  s.dd, s.d, s.mm, s.m = tonumber(v[4] or 0), tonumber(v[5] or 0), tonumber(v[6] or 0), tonumber(v[7] or 0)
  s.w, s.rs, s.ts = tonumber(v[8] or 0), tonumber(v[9] or 0), tonumber(v[10] or 0)
  s.rc, s.tc = tonumber(v[11] or 0), tonumber(v[12] or 0)
  return s
end

local function save(key, s)
  if not s.changed then return end
  redis.call('HSET', key, 'tot', s.tot, 'open', s.open, 'n', s.n, 'dd', s.dd, 'd', s.d, 'mm', s.mm, 'm', s.m,
    'w', s.w, 'rs', s.rs, 'ts', s.ts, 'rc', s.rc, 'tc', s.tc)
  if s.queue then redis.call('HSET', key, 'q', s.queue) end
end

-- Begin the day and the month anew where they are over.
local function turn(s, day, month)
  if s.dd < day then s.dd, s.d, s.changed = day, 0, true end
  if s.mm < month then s.mm, s.m, s.changed = month, 0, true end
end

-- Bring the window up to now: buckets that have left it are taken off the sums.
local function slide(key, s, now)
  local b = math.floor(now / BUCKET_MS)
  -- The clock may have been set back (another machine took over): go on in the newest bucket until time has caught up,
  -- unless that would take longer than a window.
  if b == s.w or (b < s.w and b > s.w - BUCKETS) then return end
  local queue = ''
  if b < s.w then
    s.rs, s.ts = 0, 0
  else
    queue = redis.call('HGET', key, 'q') or ''
    if s.rc > 0 or s.tc > 0 then queue = queue .. struct.pack(RECORD, s.w, s.rc, s.tc) end
    local at = 1
    while at < #queue do
      local bucket, r, t = struct.unpack(RECORD, queue, at)
      if bucket > b - BUCKETS then break end
      s.rs, s.ts, at = s.rs - r, s.ts - t, at + RECORD_BYTES
    end
    queue = string.sub(queue, at)
  end
  s.w, s.rc, s.tc, s.queue, s.changed = b, 0, 0, queue, true
end

local function count_request(s)
  s.rc, s.rs, s.changed = s.rc + 1, s.rs + 1, true
end

-- Charge tokens to the day and month of the admission; a period that is over counts no further.
local function charge(s, day, month, tokens)
  turn(s, day, month)
  if s.dd == day then s.d = s.d + tokens end
  if s.mm == month then s.m = s.m + tokens end
  s.tot = s.tot + tokens
  s.tc, s.ts, s.changed = s.tc + tokens, s.ts + tokens, true
end

-- What a reservation held goes back.
local function release(s, tokens)
  s.open, s.n, s.changed = math.max(s.open - tokens, 0), math.max(s.n - 1, 0), true
end

-- Milliseconds until `excess` requests (kind 1) or tokens (kind 2) have left the window; `slide` was called before.
local function wait_for(key, s, now, kind, excess)
  local queue = s.queue or redis.call('HGET', key, 'q') or ''
  for at = 1, #queue, RECORD_BYTES do
    local bucket, r, t = struct.unpack(RECORD, queue, at)
    excess = excess - (kind == 1 and r or t)
    if excess <= 0 then return (bucket + BUCKETS) * BUCKET_MS - now end
  end
  return (s.w + BUCKETS) * BUCKET_MS - now -- what the newest bucket holds goes last
end

-- A reservation is text: six figures, then the identity of its request as JSON, untouched. (Lua's JSON would round
-- large numbers.)
local HELD = '^(%d+) (%d+) (%d+) (%d+) (%d) (%d+) (.*)$'
local function held(text)
  local r, p, day, month, key_counts, bytes, identity = string.match(text, HELD)
  return {
    reserved = tonumber(r), prompt = tonumber(p), day = tonumber(day), month = tonumber(month),
    key_counts = key_counts == '1', bytes = tonumber(bytes), identity = identity,
  }
end

-- Whether stream id `a` comes after `b`.
local function after(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms > b_ms or a_ms == b_ms and tonumber(a_seq) > tonumber(b_seq)
end

-- Of an event's fields, where it is a settlement: tokens, day, tenant and the key whose counters it went to.
-- `settle.lua` writes them in this order.
local function settled(fields)
  if fields[2] ~= 'settle' then return end
  local prompt, completion = string.match(fields[6], '^(%d+) (%d+)')
  local identity = cjson.decode(fields[8])
  return prompt + completion, tonumber(fields[4]), identity.t, identity.ka or identity.k
end

-- Count a refusal, or an answer for anybody (kind 'open'); 1 where its address has had so many of its kind this minute that
-- it gets no row of its own. Those are counted beside, without their kind: that count is what the ledger writes down.
local function flooded(refusals, now, address, most, kind)
  local minute = string.format('%d|%s', now / 60000, address)
  if redis.call('HINCRBY', refusals, kind .. '|' .. minute, 1) <= tonumber(most) then return 0 end
  redis.call('HINCRBY', refusals, kind == 'open' and minute .. '|open' or minute, 1)
  return 1
end

-- Tokens per byte of prompt, times 10 000, as this shard has learned them of a model. The start is a careful one: about
-- three bytes a token.
local START_RATIO, LEAST_RATIO, MOST_RATIO, OVERHEAD, MARGIN = 3500, 500, 20000, 8, 1.1
local function estimate(ratio, bytes)
  if bytes == 0 then return 0 end
  return math.ceil(bytes * tonumber(ratio or START_RATIO) * MARGIN / 10000) + OVERHEAD
end

-- It rises sooner than it falls: too high an estimate holds tokens back for a moment, too low a one lets a budget be
-- overdrawn. The bounds keep odd prompts (images, a cache that answers) from leading it anywhere.
local function learn(about, model, bytes, tokens)
  if bytes < 64 or tokens < 1 then return end -- short prompts say more about the template than about the text
  local ratio = tonumber(redis.call('HGET', about, 'ratio:' .. model) or START_RATIO)
  local seen = tokens * 10000 / bytes
  ratio = ratio + (seen > ratio and 0.3 or 0.1) * (seen - ratio)
  ratio = string.format('%.1f', math.max(LEAST_RATIO, math.min(ratio, MOST_RATIO)))
  redis.call('HSET', about, 'ratio:' .. model, ratio)
end
