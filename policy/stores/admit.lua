-- Admit one request: hold it to every limit of its tenant and key, reserve its tokens, write its event. One step.
--
-- KEYS: 1 tenant scope, 2 key scope, 3 reservations (hash), 4 leases (zset), 5 events (stream), 6 epoch, 7 ratios,
--       8 refusals per address and minute (hash), then further scopes, then a signature if there is one
-- ARGV: 1 clock override in ms or '', 2 request id, 3 mode ('reserve', 'count', 'deny'; with '+' where the request is
--       counted among the requests already), 4 model, 5 prompt bytes,
--       6 completion tokens wanted in all, 7 '1' if the client named them itself, 8 completions (the least cap),
--       9 lease in ms, 10 epoch candidate, 11 identity JSON (stored with the reservation), 12 event JSON,
--       13 seed JSON or '', 14 '1' where the key has limits of its own,
--       15-20 tenant limits, 21-26 key limits: rpm, tpm, concurrency, day, month, total; -1 for none,
--       27 client address, 28 refusals recorded one by one per address and minute, 29 how many further scopes,
--       30 how long a signature is remembered in ms ('' where there is none), and for each further scope seven:
--       how long it is kept after its last use in ms (0: it must be there and keeps its own end), and its limits
-- Returns {verdict, wait in ms, cap, prompt estimate, epoch, day, '1' if the refusal was only counted,
-- tenant figures…, key figures…, figures of further scopes…}; the figures are
-- requests, tokens, under way, day, month, total, open before this request. Verdicts: 'ok', a reason, or 'seed'.

local now = clock(ARGV[1])
local day, month = calendar(now)
local id, mode = ARGV[2], ARGV[3]
local fresh = mode:sub(-1) ~= '+' -- an opened envelope was counted when its key was checked
if not fresh then mode = mode:sub(1, -2) end
local scopes = {{KEYS[1], 15}}
if ARGV[14] == '1' then scopes[2] = {KEYS[2], 21} end
local seeded, extras = #scopes, tonumber(ARGV[29])

local seed = ARGV[13] ~= '' and cjson.decode(ARGV[13]) or nil
for i, scope in ipairs(scopes) do
  if redis.call('HEXISTS', scope[1], 'tot') == 0 then
    if not seed then return {'seed'} end
    local s = seed[i]
    redis.call('HSET', scope[1], 'dd', s[1], 'd', s[2], 'mm', s[3], 'm', s[4], 'tot', s[5])
  end
end

-- Further scopes are made when first used: they stand for nothing that the ledger knows. A session is made elsewhere,
-- and one that is not there is over.
local over, repeated = false, false
for i = 1, extras do
  local key, a = KEYS[8 + i], 31 + (i - 1) * 7
  local keep = tonumber(ARGV[a])
  if keep > 0 then
    if redis.call('HEXISTS', key, 'tot') == 0 then
      redis.call('HSET', key, 'dd', day, 'd', 0, 'mm', month, 'm', 0, 'tot', 0)
    end
    redis.call('PEXPIRE', key, keep)
    scopes[#scopes + 1] = {key, a + 1}
  elseif redis.call('HEXISTS', key, 'tot') == 1 then
    redis.call('HINCRBY', key, 'asked', 1)
    redis.call('HSET', key, 'last', now)
    scopes[#scopes + 1] = {key, a + 1}
  else
    over = true
  end
end
if ARGV[30] ~= '' then
  -- Seen before, unless it was by this very request: Envoy may ask twice about one.
  local seen = KEYS[9 + extras]
  repeated = not redis.call('SET', seen, id, 'NX', 'PX', tonumber(ARGV[30])) and redis.call('GET', seen) ~= id
end

-- Envoy may ask twice about one request (a retry after a broken stream): the first reservation gives way.
local before = redis.call('HGET', KEYS[3], id)
if before then
  local old = cjson.decode(before)
  release(KEYS[1], old.r)
  if old.kc == 1 then release(KEYS[2], old.r) end
  for i = 1, #(old.x or {}) do release_from(KEYS[8 + i], old.r) end
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
end

local prompt = mode == 'reserve' and estimate(KEYS[7], ARGV[4], tonumber(ARGV[5])) or 0
local wanted, least = tonumber(ARGV[6]), tonumber(ARGV[8])
local floor_cap = ARGV[7] == '1' and wanted or math.min(wanted, least)
local left = math.huge
local verdict, wait = 'ok', 0
local figures = {}

local function refuse(reason, ms)
  if verdict == 'ok' or ms > wait then verdict, wait = reason, ms end
end

for _, scope in ipairs(scopes) do
  local key, a = scope[1], scope[2]
  local rpm, tpm, concurrency = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local budgets = {tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])}
  local requests = window(key, 'r', now)
  local tokens = window(key, 't', now)
  local v = redis.call('HMGET', key, 'open', 'n')
  local open, under_way = tonumber(v[1] or 0), tonumber(v[2] or 0)
  local d, m, tot = used(key, day, month)
  figures[#figures + 1] = {requests, tokens, under_way, d, m, tot, open}

  if fresh and rpm >= 0 and requests + 1 > rpm then
    refuse('rate_requests', wait_for(key, 'r', now, requests + 1 - rpm))
  end
  if mode == 'reserve' then
    local need = prompt + floor_cap
    if concurrency >= 0 and under_way + 1 > concurrency then refuse('concurrency', 1000) end
    if tpm >= 0 then
      if tokens + open + need > tpm then
        -- What is reserved may come back at any moment: only what was used has a known end.
        local excess = tokens + need - tpm
        refuse('rate_tokens', excess > 0 and wait_for(key, 't', now, math.min(excess, tokens)) or 1000)
      end
      left = math.min(left, tpm - tokens - open)
    end
    local names = {'budget_day', 'budget_month', 'budget_total'}
    for i, spent in ipairs({d, m, tot}) do
      if budgets[i] >= 0 then
        if spent + open + need > budgets[i] then
          local ms = 1000
          if spent + need > budgets[i] then
            if i == 1 then ms = (day + 1) * 86400000 - now
            elseif i == 2 then ms = month_end(day, month) - now
            else ms = 86400000 end -- a total budget does not refill: ask again tomorrow, an operator may have raised it
          end
          refuse(names[i], ms)
        end
        left = math.min(left, budgets[i] - spent - open)
      end
    end
  end
end

if over then verdict, wait = 'session_revoked', 0 elseif repeated then verdict, wait = 'signature_replayed', 0 end

local cap = wanted
if verdict == 'ok' and ARGV[7] ~= '1' and mode == 'reserve' then cap = math.min(wanted, left - prompt) end
local epoch = redis.call('GET', KEYS[6])
if not epoch then
  redis.call('SET', KEYS[6], ARGV[10])
  epoch = ARGV[10]
end

if verdict == 'ok' then
  if fresh then
    for _, scope in ipairs(scopes) do add(scope[1], 'r', now, 1) end
  end
  if mode == 'reserve' then
    local reserved = prompt + cap
    for _, scope in ipairs(scopes) do
      redis.call('HINCRBY', scope[1], 'open', reserved)
      redis.call('HINCRBY', scope[1], 'n', 1)
    end
    local identity = cjson.decode(ARGV[11])
    identity.r, identity.p, identity.d, identity.m = reserved, prompt, day, month
    identity.kc, identity.b = seeded - 1, tonumber(ARGV[5])
    redis.call('HSET', KEYS[3], id, cjson.encode(identity))
    redis.call('ZADD', KEYS[4], now + tonumber(ARGV[9]), id)
  end
end
local counted = 0
if verdict ~= 'ok' or mode == 'deny' then
  local minute = math.floor(now / 60000)
  if redis.call('HINCRBY', KEYS[8], minute .. '|' .. ARGV[27], 1) > tonumber(ARGV[28]) then counted = 1 end
end
if counted == 0 then
  redis.call('XADD', KEYS[5], '*', 'k', 'admit', 'v', verdict, 'd', day, 'e', ARGV[12])
end

local reply = {verdict, wait, cap, prompt, epoch, day, counted}
for _, f in ipairs(figures) do
  for i = 1, 7 do reply[#reply + 1] = f[i] end
end
return reply
