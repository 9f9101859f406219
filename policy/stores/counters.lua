-- What the scripts share: windows, budgets, reservations of one scope (a tenant, or a key), all in one hash.
--
-- Fields of a scope's hash:
--   r<b>, rs, rh   requests: one count per bucket of 250 ms, their sum, the oldest bucket still counted
--   t<b>, ts, th   tokens settled, the same way
--   open, n        tokens reserved and requests under way
--   dd, d, mm, m   the UTC day and month the next two count for, tokens used in each
--   tot            tokens used ever; its absence says that the scope was never seeded from PostgreSQL
-- A window is the last 240 buckets: a request leaves it 59.75 to 60 s after it came, so that a stated wait of at most
-- 60 s is always enough. Time is the store's own clock: the processes that call may disagree about theirs.

local BUCKET_MS, BUCKETS = 250, 240

local function clock(override)
  if override ~= '' then return tonumber(override) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- The UTC day number, the month as yyyymm, and the milliseconds at which each ends.
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

local function calendar(now)
  local day = math.floor(now / 86400000)
  return day, civil_month(day)
end

local function month_end(day, month)
  local next_day = day
  repeat next_day = next_day + 1 until civil_month(next_day) ~= month
  return next_day * 86400000
end

-- Drop what has left the window; return the sum of what is in it.
local function window(scope, p, now)
  local head = tonumber(redis.call('HGET', scope, p .. 'h') or false)
  if not head then return 0 end
  local sum = tonumber(redis.call('HGET', scope, p .. 's') or 0)
  local first = math.floor(now / BUCKET_MS) - BUCKETS + 1
  if head >= first then return sum end
  local last = math.min(first - 1, head + BUCKETS - 1)
  local fields = {}
  for b = head, last do fields[#fields + 1] = p .. b end
  local counts = redis.call('HMGET', scope, unpack(fields))
  local gone, dead = 0, {}
  for i, count in ipairs(counts) do
    if count then
      gone = gone + tonumber(count)
      dead[#dead + 1] = fields[i]
    end
  end
  if #dead > 0 then redis.call('HDEL', scope, unpack(dead)) end
  sum = sum - gone
  redis.call('HSET', scope, p .. 'h', first, p .. 's', sum)
  return sum
end

local function add(scope, p, now, amount)
  local b = math.floor(now / BUCKET_MS)
  redis.call('HINCRBY', scope, p .. b, amount)
  redis.call('HINCRBY', scope, p .. 's', amount)
  redis.call('HSETNX', scope, p .. 'h', b)
end

-- Milliseconds until at least `excess` has left the window; a whole window where it never does.
local function wait_for(scope, p, now, excess)
  local b = math.floor(now / BUCKET_MS)
  local fields = {}
  for i = b - BUCKETS + 1, b do fields[#fields + 1] = p .. i end
  local freed = 0
  for i, count in ipairs(redis.call('HMGET', scope, unpack(fields))) do
    if count then
      freed = freed + tonumber(count)
      if freed >= excess then return (b - BUCKETS + i + BUCKETS) * BUCKET_MS - now end
    end
  end
  return BUCKETS * BUCKET_MS
end

-- Bring the day and month of a scope up to `day` and `month`; return what was used in each, and in total.
local function used(scope, day, month)
  local v = redis.call('HMGET', scope, 'dd', 'd', 'mm', 'm', 'tot')
  local d, m = tonumber(v[2] or 0), tonumber(v[4] or 0)
  if tonumber(v[1] or 0) < day then
    d = 0
    redis.call('HSET', scope, 'dd', day, 'd', 0)
  end
  if tonumber(v[3] or 0) < month then
    m = 0
    redis.call('HSET', scope, 'mm', month, 'm', 0)
  end
  return d, m, tonumber(v[5] or 0)
end

-- Charge tokens to the day and month of the admission; a period that is over counts no further.
local function charge(scope, day, month, now, tokens)
  local v = redis.call('HMGET', scope, 'dd', 'mm')
  if tonumber(v[1] or 0) == day then redis.call('HINCRBY', scope, 'd', tokens) end
  if tonumber(v[2] or 0) == month then redis.call('HINCRBY', scope, 'm', tokens) end
  redis.call('HINCRBY', scope, 'tot', tokens)
  window(scope, 't', now)
  add(scope, 't', now, tokens)
end

local function release(scope, tokens)
  redis.call('HINCRBY', scope, 'open', -tokens)
  redis.call('HINCRBY', scope, 'n', -1)
end

-- The same for a scope that may have ended since (a session), or ended and begun anew (an address): what is gone stays
-- gone, and what is new never owes for what was before.
local function release_from(scope, tokens)
  local v = redis.call('HMGET', scope, 'open', 'n')
  if v[1] then redis.call('HSET', scope, 'open', math.max(0, tonumber(v[1]) - tokens)) end
  if v[2] then redis.call('HSET', scope, 'n', math.max(0, tonumber(v[2]) - 1)) end
end

local function charge_to(scope, day, month, now, tokens)
  if redis.call('HEXISTS', scope, 'tot') == 1 then charge(scope, day, month, now, tokens) end
end

-- A model's tokens per prompt byte, times 10 000, as learned by this shard; the start is a careful one.
local START_RATIO, OVERHEAD, MARGIN = 3500, 8, 1.1
local function estimate(ratios, model, bytes)
  if bytes == 0 then return 0 end
  local ratio = tonumber(redis.call('HGET', ratios, model) or START_RATIO)
  return math.ceil(bytes * ratio * MARGIN / 10000) + OVERHEAD
end

local function learn(ratios, model, bytes, tokens)
  if bytes < 64 or tokens < 1 then return end -- short prompts say more about the template than about the text
  local seen = tokens * 10000 / bytes
  local ratio = tonumber(redis.call('HGET', ratios, model) or seen)
  redis.call('HSET', ratios, model, string.format('%.1f', math.min(ratio + 0.1 * (seen - ratio), 20000)))
end
