-- Admit one request: hold it to every limit of its tenant and key, reserve its tokens, write its event. One step.
--
-- KEYS: 1 tenant scope, 2 key scope, 3 reservations (hash), 4 leases (zset), 5 events (stream), 6 about (hash: epoch,
--       ratios), 7 refusals per address and minute (hash), 8 progress (hash), then further scopes, then a signature if
--       there is one
-- ARGV: 1 clock override in ms or '', 2 request id, 3 mode ('reserve', 'count', 'deny'; with '+' where the request is
--       counted among the requests already), 4 model, 5 prompt bytes, 6 completion tokens wanted in all, 7 '1' if the
--       client named them itself, 8 completions (the least cap), 9 lease in ms, 10 epoch candidate, 11 identity JSON
--       (stored with the reservation), 12 event JSON, 13 what PostgreSQL knows, as JSON, or '', 14 '1' where the key
--       has limits of its own, 15-20 tenant limits, 21-26 key limits: rpm, tpm, concurrency, day, month, total; -1 for
--       none, 27 client address, 28 refusals recorded one by one per address and minute, 29 tenant id, 30 id of the
--       key scope, 31 how many further scopes, 32 how long a signature is remembered in ms ('' where there is none), and for each
--       further scope seven: how long it is kept after its last use in ms (0: it must be there and keeps its own end),
--       and its limits
-- Returns {verdict, wait in ms, cap, prompt estimate, epoch, day, 1 if the refusal was only counted,
-- tenant figures…, key figures…, figures of further scopes (up to one that is not there)…}; the figures are
-- requests, tokens, under way, day, month, total, open before this request. Verdicts: 'ok', a reason, 'seed' (read what
-- the ledger knows and ask again) or 'behind' (the ledger has not caught up, so that no seed can be trusted).

local FURTHER, FURTHER_LIMITS = 8, 33 -- where they begin, in KEYS and in ARGV

local now = clock(ARGV[1])
local day, month = calendar(now)
local id, mode = ARGV[2], ARGV[3]
local fresh = string.sub(mode, -1) ~= '+' -- an opened envelope was counted when its key was checked
if not fresh then mode = string.sub(mode, 1, -2) end
local known = redis.call('HMGET', KEYS[6], 'epoch', 'ratio:' .. ARGV[4])
local epoch = epoch_of(KEYS[6], known[1], ARGV[10])

-- Each scope with its key, and where its limits begin in ARGV.
local function scope(key, first)
  local s = load(key)
  s.key, s.first = key, first
  return s
end
local scopes = {scope(KEYS[1], 15)}
if ARGV[14] == '1' then scopes[2] = scope(KEYS[2], 21) end

-- A scope without counters: what PostgreSQL knew, and what waits in the stream since. PostgreSQL says up to which event
-- of which life of the store it knows.
local function seed()
  if ARGV[13] == '' then return 'seed' end
  local ledger = cjson.decode(ARGV[13])
  local from = ledger.epoch == epoch and ledger.event or '0-0'
  local carried = redis.call('HGET', KEYS[6], 'carried')
  if carried and after(carried, from) then return 'seed' end -- what was carried since has left the stream
  local waiting = redis.call('XRANGE', KEYS[5], '(' .. from, '+', 'COUNT', 2001)
  if #waiting > 2000 then return 'behind' end
  for i, s in ipairs(scopes) do
    if not s.seeded then
      local was = ledger.scopes[i]
      s.dd, s.d, s.mm, s.m, s.tot, s.changed = was[1], was[2], was[3], was[4], was[5], true
      turn(s, day, month)
    end
  end
  for _, event in ipairs(waiting) do
    local tokens, of_day, tenant, key = settled(event[2])
    if tokens and tenant == tonumber(ARGV[29]) then
      for i, s in ipairs(scopes) do
        if not s.seeded and (i == 1 or key == tonumber(ARGV[30])) then
          if s.dd == of_day then s.d = s.d + tokens end
          if s.mm == civil_month(of_day) then s.m = s.m + tokens end
          s.tot = s.tot + tokens
        end
      end
    end
  end
end

for _, s in ipairs(scopes) do
  if not s.seeded then
    local refused = seed()
    if refused then return {refused} end
    break
  end
end

-- Further scopes are made when first used: they stand for nothing that the ledger knows. A session is made elsewhere,
-- and one that is not there is over.
local over, repeated = false, false
for i = 1, tonumber(ARGV[31]) do
  local s = scope(KEYS[FURTHER + i], FURTHER_LIMITS + 7 * (i - 1) + 1)
  s.keep = tonumber(ARGV[s.first - 1])
  if not s.seeded and s.keep == 0 then
    over = true
    break
  end
  if s.keep == 0 then
    redis.call('HINCRBY', s.key, 'asked', 1)
    redis.call('HSET', s.key, 'last', now)
  end
  s.changed = s.changed or not s.seeded
  scopes[#scopes + 1] = s
end
local signature = ARGV[32] ~= '' and KEYS[#KEYS]
if signature then
  local seen = redis.call('GET', signature)
  repeated = seen and seen ~= id -- if by this very request: Envoy may ask twice about one
end

-- Envoy may ask twice about one request (a retry after a broken stream): the first reservation gives way, and the
-- request counts once.
local again = false
local before = redis.call('HGET', KEYS[3], id)
if before then
  local old = held(before)
  for _, s in ipairs(scopes) do
    if s.key ~= KEYS[2] or old.key_counts then release(s, old.reserved) end
  end
  if old.key_counts and ARGV[14] ~= '1' then -- the key's limits are gone meanwhile
    local s = load(KEYS[2])
    if s.seeded then release(s, old.reserved) end
    save(KEYS[2], s)
  end
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[8], id)
  again = true
end

local reserves = mode == 'reserve'
local prompt = reserves and estimate(known[2], tonumber(ARGV[5])) or 0
local explicit = ARGV[7] == '1'
local wanted = tonumber(ARGV[6])
local need = prompt + (explicit and wanted or math.min(wanted, tonumber(ARGV[8])))
local left = math.huge
local verdict, wait = 'ok', 0
local reply = {verdict, wait, 0, prompt, epoch, day, 0}

local BUDGETS = {'budget_day', 'budget_month', 'budget_total'}
local function period_left(i)
  if i == 1 then return (day + 1) * 86400000 - now end
  if i == 2 then return month_end(day, month) - now end
  return 86400000 -- a total does not refill: ask again tomorrow, an operator may have raised it
end

local function refuse(reason, ms)
  if verdict == 'ok' or ms > wait then verdict, wait = reason, ms end
end

-- Each wait is known to be enough as long as nothing else is used meanwhile; a second where it hangs on requests under
-- way, which may end at any moment.
local function judge(s)
  local requests = math.max(s.rs - (again and fresh and 1 or 0), 0)
  for _, figure in ipairs({requests, s.ts, s.n, s.d, s.m, s.tot, s.open}) do reply[#reply + 1] = figure end
  local rpm, tpm, concurrency = tonumber(ARGV[s.first]), tonumber(ARGV[s.first + 1]), tonumber(ARGV[s.first + 2])
  if fresh and rpm >= 0 and requests + 1 > rpm then
    refuse('rate_requests', rpm > 0 and wait_for(s.key, s, now, 1, requests + 1 - rpm) or WINDOW_MS)
  end
  if not reserves then return end
  if concurrency >= 0 and s.n + 1 > concurrency then refuse('concurrency', 1000) end
  if tpm >= 0 then
    if s.ts + s.open + need > tpm then
      local excess = s.ts + need - tpm
      if need > tpm then refuse('rate_tokens', WINDOW_MS)
      else refuse('rate_tokens', excess > 0 and wait_for(s.key, s, now, 2, excess) or 1000) end
    end
    left = math.min(left, tpm - s.ts - s.open)
  end
  for i, spent in ipairs({s.d, s.m, s.tot}) do
    local bound = tonumber(ARGV[s.first + 2 + i])
    if bound >= 0 then
      if spent + s.open + need > bound then
        refuse(BUDGETS[i], spent + need > bound and period_left(i) or 1000)
      end
      left = math.min(left, bound - spent - s.open)
    end
  end
end

for _, s in ipairs(scopes) do
  turn(s, day, month)
  slide(s.key, s, now)
  judge(s)
end
if over then verdict, wait = 'session_revoked', 0 elseif repeated then verdict, wait = 'signature_replayed', 0 end

local cap = wanted
if verdict == 'ok' then
  -- What was refused for a limit was not done, and is not remembered: a flood of it would fill the store.
  if signature then redis.call('SET', signature, id, 'PX', ARGV[32]) end
  if reserves and not explicit then cap = math.min(wanted, left - prompt) end
  for _, s in ipairs(scopes) do
    if fresh and not again then count_request(s) end
    if reserves then s.open, s.n, s.changed = s.open + prompt + cap, s.n + 1, true end
  end
  if reserves then
    local figures = string.format('%d %d %d %d %d %d ', prompt + cap, prompt, day, month, ARGV[14], ARGV[5])
    redis.call('HSET', KEYS[3], id, figures .. ARGV[11])
    redis.call('ZADD', KEYS[4], now + tonumber(ARGV[9]), id)
  end
end
for _, s in ipairs(scopes) do
  save(s.key, s)
  if s.keep and s.keep > 0 then redis.call('PEXPIRE', s.key, s.keep) end
end

if verdict ~= 'ok' or mode == 'deny' then reply[7] = flooded(KEYS[7], now, ARGV[27], ARGV[28], 'request') end
if reply[7] == 0 then redis.call('XADD', KEYS[5], '*', 'k', 'admit', 'v', verdict, 'e', ARGV[12]) end
reply[1], reply[2], reply[3] = verdict, wait, cap
return reply
