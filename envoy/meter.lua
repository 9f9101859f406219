-- Reads what an answer used while Envoy passes it on, and edits it where it must.
--
-- A meter is made for each answer, by its endpoint and content type, and is fed the body chunk by chunk. It says nil
-- for a chunk that passes as it is, which is nearly every chunk, or the bytes to send instead. It can tell at any
-- moment what was used so far, so that an answer that ends early is charged for what it was. What an upstream
-- compressed without being asked is decompressed first. It edits four things: an upstream's error becomes one in our
-- words (its text names files and models), a usage that the client did not ask for is taken out, an answer that passes
-- its cap is ended in the manner of its dialect, and an event stream that breaks off ends in an error event.
--
-- This is the meter of processor/usage.py once more, here to save a stream a hop to another process for each chunk. The
-- two must agree to the byte (tests/envoy/test_meter_lua.py); the modules of the same names (frames, ndjson, chunks,
-- document, tally, sse) give the reasons for what both do. What is written here is why Lua does it in another way.
--
-- Envoy runs this in LuaJIT, on the thread that carries the traffic: nothing waits, nothing raises on what an upstream
-- says, and an ordinary chunk costs a few searches for fixed strings, which LuaJIT compiles, and no new string.

local byte, char, find, format, gsub = string.byte, string.char, string.find, string.format, string.gsub
local lower, match, sub, concat = string.lower, string.match, string.sub, table.concat

local LONGEST = 1048576 -- a longer frame is not kept: it passes, and its tail is read for the counts that close it
local WHOLE = 65536 -- of a longer document, too, only the tail is read
local TAIL = 8192
local SIGNS = 4096 -- a frame that does not show in its first bytes that it is content has to wait for its end
local TAINT = '"error"' -- what has this key is an error until it is parsed
local LARGEST = 9007199254740992 -- 2^53: no count of anything real, and the last whole number that all readers hold
local DEEPEST = 900 -- nested deeper, JSON is not read: about where Python's reader gives up
local LONGEST_NUMBER = 4300 -- digits of a whole number that Python's reader refuses beyond
local QUOTE, BACKSLASH, COLON, COMMA, LF, CR = 34, 92, 58, 44, 10, 13

-- JSON --------------------------------------------------------------------------------------------------------------
-- An object is a table of its members that has their names, in order, at 1, 2, …; an array has ARRAY at 0. A whole
-- number that may be a count is a Lua number; any other is {[0] = NUMBER, text = as it was written}. Broken UTF-8 in
-- a text is left as it is, and does not hide the counts beside it.

local NULL, ARRAY, NUMBER = {}, {}, {}
local ESCAPES = {
  [34] = '"', [92] = "\\", [47] = "/", [98] = "\b", [102] = "\f", [110] = "\n", [114] = "\r", [116] = "\t",
}
local WORDS = {
  { "true", true }, { "false", false }, { "null", NULL }, { "NaN", { [0] = NUMBER, text = "NaN" } },
  { "Infinity", { [0] = NUMBER, text = "Infinity" } }, { "-Infinity", { [0] = NUMBER, text = "-Infinity" } },
}

local function utf8(point) -- half a surrogate pair too, as three bytes, so that it can be written as it was
  if point < 128 then return char(point) end
  if point < 2048 then return char(192 + (point - point % 64) / 64, 128 + point % 64) end
  local low, middle = point % 64, (point - point % 64) / 64 % 64
  if point < 65536 then return char(224 + (point - point % 4096) / 4096, 128 + middle, 128 + low) end
  local high = (point - point % 4096) / 4096 % 64
  return char(240 + (point - point % 262144) / 262144, 128 + high, 128 + middle, 128 + low)
end

local function skip(text, at) -- to what is no white space
  local first = byte(text, at)
  if first and first > 32 then return at end
  return find(text, "[^ \t\n\r]", at) or #text + 1
end

-- Each decoder returns the value and where the text goes on after it; where there is no value, nothing.
local decode

local function decode_escape(text, at)
  local plain = ESCAPES[byte(text, at)]
  if plain then return plain, at + 1 end
  local digits = match(text, "^u(%x%x%x%x)", at)
  if not digits then return end
  local point = tonumber(digits, 16)
  if point >= 0xD800 and point < 0xDC00 then
    local second = match(text, "^\\u([dD][c-fC-F]%x%x)", at + 5)
    if second then return utf8(0x10000 + (point - 0xD800) * 1024 + tonumber(second, 16) - 0xDC00), at + 11 end
  end
  return utf8(point), at + 5
end

local function decode_string(text, at)
  local from, parts = at, nil
  while true do
    local stop = find(text, '[%z\1-\31"\\]', at)
    local what = stop and byte(text, stop)
    if what == QUOTE then
      local last = sub(text, from, stop - 1)
      return parts and concat(parts) .. last or last, stop + 1
    end
    if what ~= BACKSLASH then return end
    parts = parts or {}
    parts[#parts + 1] = sub(text, from, stop - 1)
    parts[#parts + 1], at = decode_escape(text, stop + 1)
    if not at then return end
    from = at
  end
end

local function decode_number(text, at)
  local start, negative = at, byte(text, at) == 45
  if negative then at = at + 1 end
  local first, digit = at, byte(text, at)
  if not digit or digit < 48 or digit > 57 then return end
  local value = digit - 48
  at = at + 1
  digit = byte(text, at)
  if value > 0 then
    while digit and digit >= 48 and digit <= 57 do
      value, at = value * 10 + (digit - 48), at + 1
      digit = byte(text, at)
    end
  end
  local length = at - first
  if digit == 46 or digit == 69 or digit == 101 then
    local _, stop = find(text, "^%.%d+", at)
    local _, last = find(text, "^[eE][+-]?%d+", (stop or at - 1) + 1)
    stop = last or stop
    if stop then return { [0] = NUMBER, text = sub(text, start, stop) }, stop + 1 end
  end
  if length > LONGEST_NUMBER then return end
  -- From 2^53 on the sum above is rounded.
  if value >= LARGEST and (negative or sub(text, first, at - 1) ~= "9007199254740992") then
    return { [0] = NUMBER, text = sub(text, start, at - 1) }, at
  end
  return (negative and value > 0) and -value or value, at
end

local function decode_members(text, at, depth)
  local object, count, key, value = {}, 0, nil, nil
  at = skip(text, at)
  if byte(text, at) == 125 then return object, at + 1 end
  while byte(text, at) == QUOTE do
    key, at = decode_string(text, at + 1)
    at = at and skip(text, at)
    if not at or byte(text, at) ~= COLON then return end
    value, at = decode(text, skip(text, at + 1), depth)
    if not at then return end
    if object[key] == nil then
      count = count + 1
      object[count] = key
    end
    object[key] = value
    at = skip(text, at)
    local what = byte(text, at)
    if what == 125 then return object, at + 1 end
    if what ~= COMMA then return end
    at = skip(text, at + 1)
  end
end

local function decode_elements(text, at, depth)
  local array, count, value = { [0] = ARRAY }, 0, nil
  at = skip(text, at)
  if byte(text, at) == 93 then return array, at + 1 end
  while true do
    value, at = decode(text, at, depth)
    if not at then return end
    count = count + 1
    array[count] = value
    at = skip(text, at)
    local what = byte(text, at)
    if what == 93 then return array, at + 1 end
    if what ~= COMMA then return end
    at = skip(text, at + 1)
  end
end

function decode(text, at, depth)
  local first = byte(text, at)
  if first == QUOTE then return decode_string(text, at + 1) end
  if first == 123 or first == 91 then
    if depth >= DEEPEST then return end
    if first == 123 then return decode_members(text, at + 1, depth + 1) end
    return decode_elements(text, at + 1, depth + 1)
  end
  local value, stop = decode_number(text, at)
  if stop then return value, stop end
  for _, word in ipairs(WORDS) do
    if sub(text, at, at + #word[1] - 1) == word[1] then return word[2], at + #word[1] end
  end
end

local function is_object(value) return type(value) == "table" and value ~= NULL and value[0] == nil end

local function is_array(value) return type(value) == "table" and value[0] == ARRAY end

local function parse(text) -- the object that `text` is, or nil
  local value, stop = decode(text, skip(text, 1), 0)
  if stop and skip(text, stop) > #text and is_object(value) then return value end
end

local function given(value) return value ~= nil and value ~= NULL end

local function truthy(value) -- as Python has it
  if not value or value == NULL or value == "" or value == 0 then return false end
  if type(value) ~= "table" then return true end
  if value[0] == NUMBER then return tonumber(value.text) ~= 0 end
  return value[1] ~= nil
end

local function count(value) -- `value` if it is a count: a whole number, not negative, of a believable size
  return type(value) == "number" and value >= 0 and value or nil
end

-- Invalid UTF-8 as Python's "replace" has it: U+FFFD for each longest beginning of a character (Unicode, section 3.9).
local function repaired(text)
  local at = find(text, "[\128-\255]")
  if not at then return text end
  local parts, from = {}, 1
  while at do
    local lead, lowest, highest = byte(text, at), 128, 191
    local more = (lead >= 194 and lead <= 223) and 1 or (lead >= 224 and lead <= 239) and 2
      or (lead >= 240 and lead <= 244) and 3 or 0
    if lead == 224 then lowest = 160 elseif lead == 237 then highest = 159 end
    if lead == 240 then lowest = 144 elseif lead == 244 then highest = 143 end
    local stop, sound = at, more > 0
    while sound and stop < at + more do
      local next_byte = byte(text, stop + 1)
      sound = next_byte ~= nil and next_byte >= lowest and next_byte <= highest
      if sound then stop = stop + 1 end
      lowest, highest = 128, 191
    end
    if not sound then
      parts[#parts + 1] = sub(text, from, at - 1) .. "\239\191\189"
      from = stop + 1
    end
    at = find(text, "[\128-\255]", stop + 1)
  end
  return concat(parts) .. sub(text, from)
end

-- The encoder writes what Python's json.dumps does, for the few members of an answer that its end repeats.
local SHORT = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
}

local function escaped(character) return SHORT[character] or format("\\u%04x", byte(character)) end

local function escaped_sequence(sequence)
  local lead, second, third, fourth = byte(sequence, 1, 4)
  if lead < 224 then return format("\\u%04x", (lead - 192) * 64 + second - 128) end
  if lead < 240 then return format("\\u%04x", (lead - 224) * 4096 + (second - 128) * 64 + third - 128) end
  local point = (lead - 240) * 262144 + (second - 128) * 4096 + (third - 128) * 64 + fourth - 128 - 0x10000
  return format("\\u%04x\\u%04x", 0xD800 + (point - point % 1024) / 1024, 0xDC00 + point % 1024)
end

local function encode_string(text)
  text = gsub(text, '[%z\1-\31"\\\127]', escaped)
  return '"' .. gsub(text, "[\194-\244][\128-\191]+", escaped_sequence) .. '"'
end

local function encode_number(text)
  if not find(text, "[.eEI]") or text == "NaN" then return text end
  local value, digits = tonumber(text), nil
  if find(text, "I") or value == 1 / 0 or value == -1 / 0 then
    return byte(text) == 45 and "-Infinity" or "Infinity"
  end
  for places = 0, 16 do -- the fewest that are this number
    digits = format("%." .. places .. "e", value)
    if tonumber(digits) == value then break end
  end
  local sign, head, rest, exponent = match(digits, "^(-?)(%d)%.?(%d*)e([+-]%d+)$")
  exponent = tonumber(exponent)
  if exponent < -4 or exponent >= 16 then
    local power = format("e%s%02d", exponent < 0 and "-" or "+", math.abs(exponent))
    return sign .. head .. (rest ~= "" and "." .. rest or "") .. power
  end
  if exponent < 0 then return sign .. "0." .. ("0"):rep(-exponent - 1) .. head .. rest end
  rest = rest .. ("0"):rep(exponent - #rest)
  local behind = sub(rest, exponent + 1)
  return sign .. head .. sub(rest, 1, exponent) .. "." .. (behind ~= "" and behind or "0")
end

local function encode(value)
  if value == NULL then return "null" end
  if type(value) == "string" then return encode_string(value) end
  if type(value) == "number" then return format("%.0f", value) end
  if type(value) == "boolean" then return tostring(value) end
  if value[0] == NUMBER then return encode_number(value.text) end
  local parts = {}
  for index, item in ipairs(value) do
    parts[index] = value[0] == ARRAY and encode(item) or encode_string(item) .. ":" .. encode(value[item])
  end
  return value[0] == ARRAY and "[" .. concat(parts, ",") .. "]" or "{" .. concat(parts, ",") .. "}"
end

local function members(object, names) -- those of these that there are, as the beginning of an object
  local parts = {}
  for _, name in ipairs(names) do
    if object[name] ~= nil then parts[#parts + 1] = '"' .. name .. '":' .. encode(object[name]) .. "," end
  end
  return "{" .. concat(parts)
end

-- What one answer used ----------------------------------------------------------------------------------------------
-- The meter itself holds the tally. What the upstream reported is exact; content chunks that passed are an estimate.

local function empty_tally()
  return {
    deltas = 0, spare = 0, -- `spare`: deltas that may be half a token and do not count against the cap
    guess = 0, -- what a whole answer without counts may have been, by its length
    load = 0, prompt_eval = 0, eval = 0, total = 0, finished = false, failed = false, readable = true,
  }
end

local function report(tally, prompt, completion) -- zero for an answer that had content is no count
  local unset = tally.deltas > 0 and (completion or 0) == 0
  tally.prompt = not (unset and prompt == 0) and prompt or nil
  tally.completion = not unset and completion or nil
end

local function read_durations(tally, final)
  tally.load, tally.total = count(final.load_duration) or 0, count(final.total_duration) or 0
end

local function read_final(tally, final) -- the final object of /api/chat or /api/generate; Go leaves out a zero
  tally.finished = true
  local prompt, completion = final.prompt_eval_count, final.eval_count
  if not given(prompt) and (given(completion) or tally.deltas == 0) then prompt = 0 end
  if not given(completion) then completion = 0 end
  report(tally, count(prompt), count(completion))
  read_durations(tally, final)
  tally.prompt_eval, tally.eval = count(final.prompt_eval_duration) or 0, count(final.eval_duration) or 0
end

local function read_usage(tally, usage)
  report(tally, count(usage.prompt_tokens), count(usage.completion_tokens))
end

local function usage_of(tally)
  return {
    prompt = tally.prompt, completion = tally.completion or math.max(tally.deltas, tally.guess),
    exact = tally.prompt ~= nil and tally.completion ~= nil, deltas = tally.deltas,
    load = tally.load, prompt_eval = tally.prompt_eval, eval = tally.eval, total = tally.total,
    finished = tally.finished, failed = tally.failed, readable = tally.readable,
  }
end

local function trailing_counts(tail) -- the plain numbers that close the object of which `tail` is the end, or nil
  local stop = #tail
  while stop > 0 and find(char(byte(tail, stop)), "%s") do stop = stop - 1 end
  if byte(tail, stop) ~= 125 then return end
  local start = stop
  while true do
    local at = start - 1
    while (byte(tail, at) or 0) >= 48 and byte(tail, at) <= 57 do at = at - 1 end
    local digits = start - 1 - at
    if digits < 1 or digits > 18 or sub(tail, at - 1, at) ~= '":' then break end
    local name = at - 2
    while byte(tail, name) == 95 or ((byte(tail, name) or 0) >= 97 and byte(tail, name) <= 122) do name = name - 1 end
    if name == at - 2 or name < 2 or sub(tail, name - 1, name) ~= ',"' then break end
    start = name - 1
  end
  return start < stop and parse("{" .. sub(tail, start + 1, stop)) or nil
end

local function trailing_usage(tail) -- the last one: tools that the client named may come before it
  local last, at = nil, find(tail, '"usage":{', 1, true)
  while at do
    last, at = at, find(tail, '"usage":{', at + 1, true)
  end
  local usage = last and decode(tail, last + 8, 0)
  return usage and usage[1] and usage or nil
end

-- What has arrived and is not read yet. A string that grew with each chunk would be copied with each: like lengths are
-- joined, so that every byte is copied a few times and a flood of single bytes takes few strings.

local function add(held, piece)
  local last = #held
  while last > 0 and #held[last] <= #piece do
    piece = held[last] .. piece
    held[last] = nil
    last = last - 1
  end
  held[last + 1] = piece
end

-- A streamed answer as a row of frames ------------------------------------------------------------------------------
-- See processor/frames.py. A judgement is PLAIN or DELTA (content: it counts, and may be where the cap cuts), and
-- what the client gets in the frame's place if not the frame itself. A dialect adds: glance, boundary, resumed,
-- opened, judge, judge_tail, fault, ending, closing and its terminator.

local PLAIN, DELTA = 1, 2
local Stream = {}

function Stream:fresh() -- a new frame begins
  self.held, self.length = {}, 0 -- the frame that has not ended yet
  self.first, self.last = nil, "" -- its first byte, its last seven
  self.head = "" -- its first bytes, until they show that it is content
  self.gone = 0 -- bytes of it that the client already has
  self.open, self.tainted = false, false -- it is content; it has a key that errors have
  self.long, self.doomed = false, false -- only its tail is kept; and it is taken for an error, so nothing of it passes
end

function Stream:feed(chunk, final)
  if self.cut then return chunk ~= "" and "" or nil end
  if self.length == 0 and not final then
    local judgement, instead = self:glance(chunk)
    if judgement == PLAIN then return nil end
    if judgement == DELTA and self.deltas < self.cap + self.spare then
      self.deltas = self.deltas + 1
      return instead
    end
  end
  return self:walk(chunk, final)
end


-- Judges every frame that ends in this chunk. A frame that passes as it is stays where it is, in the part of the chunk
-- from `kept` on; what comes in the place of another goes into `out`, after the part before it.
function Stream:walk(chunk, final)
  local out, kept, start, broken = {}, 1, 1, false
  local stop
  if self.length > 0 then stop = self:resumed(chunk) else stop = self.boundary(chunk, 1) end
  while stop or (start <= #chunk or final and self.length > 0) and not self.cut do
    local frame = sub(chunk, start, stop or #chunk)
    local before = not stop and final and sub(concat(self.held), 1, self.gone) or ""
    local passes
    if not (stop or final) then
      passes = self:keep(frame)
    elseif self.length > 0 then
      passes = self:settle(frame)
    else
      passes = self:pass(frame, 0)
    end
    if not stop and final then
      local seen = passes ~= "" and passes or before
      broken = seen ~= "" and sub(seen, -#self.terminator) ~= self.terminator
    end
    if passes ~= frame then
      out[#out + 1] = sub(chunk, kept, start - 1)
      out[#out + 1] = passes
      kept = start + #frame
    end
    start = start + #frame
    if self.cut or not stop then break end
    stop = self.boundary(chunk, start)
  end
  local closing = final and not self.cut and self:closing(broken) or ""
  if #out == 0 and closing == "" and not self.cut then return nil end
  local instead = concat(out) .. sub(chunk, kept, start - 1) .. closing
  return instead ~= chunk and instead or nil
end

function Stream:settle(rest) -- the frame that was kept ends with `rest`: what the client still gets of it
  local frame, gone, long, doomed = concat(self.held), self.gone, self.long, self.doomed
  self:fresh()
  if doomed then return self:fault() end
  if long then
    self:judge_tail(sub(frame, -TAIL) .. rest)
    return rest
  end
  return self:pass(frame .. rest, gone)
end

function Stream:pass(frame, gone) -- judges a whole frame, counts it, and returns what the client still gets of it
  local judgement, instead = self:judge(frame)
  if judgement == DELTA then
    if self.deltas >= self.cap + self.spare then
      self.cut = true
      return self:ending(frame)
    end
    self.deltas = self.deltas + 1
  end
  if not instead then return gone > 0 and sub(frame, gone + 1) or frame end
  return gone > 0 and self.terminator .. instead or instead -- what is gone can not be taken back: it is closed
end

function Stream:keep(piece) -- the frame goes on in the next chunk: what of it may pass already
  local joined = self.last .. piece
  self.first = self.first or byte(piece)
  self.last = sub(joined, -7)
  self.length = self.length + #piece
  add(self.held, piece)
  if not self.long then
    self.tainted = self.tainted or find(joined, TAINT, 1, true) ~= nil
    if not self.open and self.gone == 0 and #self.head < SIGNS then
      self.head = sub(self.head .. piece, 1, SIGNS)
      self.open = self:opened(self.head)
    end
    self.long = self.length > LONGEST
    self.doomed = self.long and self.tainted and not self.open
  end
  -- At the cap the next delta is where the stream is cut, and nothing of it may be gone by then.
  local room = self.deltas < self.cap + self.spare
  if not (self.long or self.open and not self.tainted and room) then return "" end
  local passes = self.doomed and "" or piece
  if not self.doomed and self.gone < self.length - #piece then passes = sub(concat(self.held), self.gone + 1) end
  if self.long and self.length > 8 * TAIL then
    self.held = { sub(concat(self.held), -TAIL) }
    self.length = TAIL
  end
  self.gone = self.length
  return passes
end

local function dialect()
  local methods = {}
  for name, method in pairs(Stream) do methods[name] = method end
  methods.__index = methods
  return methods
end

-- The native dialect: NDJSON. See processor/ndjson.py.

local Native = dialect()
local GOES_ON = '"done":false}\n' -- ends every line but the final one, and nothing that was generated
local NATIVE_FAULT = '{"error":"upstream error"}\n'
Native.terminator = "\n"

local function native_content(line)
  local parts = is_object(line.message) and line.message or line
  return truthy(parts.content) or truthy(parts.response) or truthy(parts.thinking) or truthy(parts.tool_calls)
    or truthy(parts.image)
end

function Native:quick(line) -- judges a line that is known to end in GOES_ON; nil if it may be anything
  if find(line, TAINT, 1, true) then return end
  local at, stop = find(line, self.text, 1, true)
  if at and byte(line, stop + 1) ~= QUOTE then return DELTA end
  if find(line, '"thinking":"', 1, true) or find(line, '"tool_calls":[', 1, true) then return DELTA end
  return PLAIN
end

function Native:glance(chunk)
  if find(chunk, GOES_ON, -14, true) and find(chunk, "\n", 1, true) == #chunk then return self:quick(chunk) end
end

function Native.boundary(data, start) return (find(data, "\n", start, true)) end

function Native:resumed(chunk) return (find(chunk, "\n", 1, true)) end

function Native:opened(head) return sub(head, 1, 9) == '{"model":' end -- Ollama's error lines begin with `error`

function Native:judge(frame)
  local judgement = find(frame, GOES_ON, -14, true) and self:quick(frame)
  if judgement then return judgement end
  local line = parse(frame)
  if not line and not find(frame, TAINT, 1, true) then return PLAIN end
  if not line or given(line.error) then return PLAIN, self:fault() end
  local content = native_content(line)
  if line.done ~= true then return content and DELTA or PLAIN end
  if content then self.deltas = self.deltas + 1 end
  read_final(self, line)
  return PLAIN
end

function Native:judge_tail(tail)
  self.deltas = self.deltas + 1
  local final = trailing_counts(tail)
  if final then read_final(self, final) end
end

function Native:fault()
  self.failed = true
  return NATIVE_FAULT
end

function Native:ending(frame)
  local line = parse(repaired(frame)) or {}
  local last = line.message ~= nil and '"message":{"role":"assistant","content":""}' or '"response":""'
  local estimate = self.prompt_estimate
  return members(line, { "model", "created_at" }) .. last .. ',"done":true,"done_reason":"length"'
    .. (estimate ~= 0 and format(',"prompt_eval_count":%.0f', estimate) or "")
    .. (self.deltas ~= 0 and format(',"eval_count":%.0f', self.deltas) or "") .. "}\n"
end

function Native:closing() return "" end

-- The OpenAI dialect: server-sent events, closed by `data: [DONE]`. See processor/chunks.py and sse.py.

local Chunks = dialect()
local DONE = "data: [DONE]\n\n"
local CHUNKS_FAULT = 'data: {"error":{"message":"upstream error","type":"bad_gateway","code":502}}\n\n'
local ZEROS = ',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
local IDLE = ZEROS .. "}\n\n"
Chunks.terminator = "\n\n"

local function blank_line(data, at) -- where the first empty line ends
  while true do
    at = find(data, "\n", at, true)
    local second = at and byte(data, at + 1)
    if not second then return end
    if second == LF then return at + 1 end
    if second == CR and byte(data, at + 2) == LF then return at + 2 end
    at = at + 1
  end
end

function Chunks.boundary(data, start)
  local first = byte(data, start)
  if first == COLON then return (find(data, "\n", start, true)) end
  if first == LF then return start end
  if first == CR and byte(data, start + 1) == LF then return start + 1 end
  return blank_line(data, start)
end

function Chunks:resumed(chunk) -- an event's end may be torn: its last two bytes stand before the chunk
  if self.first == COLON and not self.long then return (find(chunk, "\n", 1, true)) end
  if self.first == CR and self.length == 1 and byte(chunk) == LF then return 1 end
  local before = sub(self.last, -2)
  local stop = blank_line(before .. chunk, 1)
  return stop and stop - #before
end

local function choice_content(choice, but_reasoning)
  local parts = choice.delta
  if parts == nil then parts = choice.message end
  if not is_object(parts) then return truthy(choice.text) end
  if truthy(parts.content) or truthy(parts.tool_calls) then return true end
  return not but_reasoning and (truthy(parts.reasoning) or truthy(parts.reasoning_content))
end

local function data_of(event)
  if sub(event, 1, 6) == "data: " and (find(event, "\n", 1, true) or 0) >= #event - 1 then
    return (gsub(sub(event, 7), "[\r\n]+$", ""))
  end
  local lines = {}
  for line in string.gmatch(event .. "\n", "([^\n]*)\n") do
    if sub(line, 1, 5) == "data:" then lines[#lines + 1] = gsub(gsub(sub(line, 6), "\r$", ""), "^ ", "") end
  end
  return concat(lines, "\n")
end

-- The event without its usage: processor/chunks.py has a regular expression for it, to two levels of braces.
local function without_usage(event)
  local space = match(event, "%s*$")
  local stop = #event - #space
  local at = find(event, ',"usage":', 1, true)
  while at do
    local usage = sub(event, at + 9, stop - 1)
    local depth, sound = 0, byte(usage) == 123
    for place = 1, sound and #usage or 0 do
      local what = byte(usage, place)
      if what == 123 then depth = depth + 1 elseif what == 125 then depth = depth - 1 end
      if depth > 2 or depth == 0 and place < #usage then sound = false break end
    end
    if byte(event, stop) == 125 and (usage == "null" or sound and depth == 0) then
      return sub(event, 1, at - 1) .. "}" .. space
    end
    at = find(event, ',"usage":', at + 1, true)
  end
  return event
end

function Chunks:turn(reasoning) -- Ollama sends the token that ends the reasoning as two chunks: the cap allows for it
  if self.thinking and not reasoning then self.spare = self.spare + 1 end
  self.thinking = reasoning
end

function Chunks:quick(event) -- judges one event of one line, if it is an ordinary one
  if not find(event, '"finish_reason":null', 1, true) or find(event, TAINT, 1, true) then return end
  local instead
  if find(event, '"usage":{', 1, true) then
    if not find(event, IDLE, -#IDLE, true) then return end
    if self.hide and not self.chat then instead = sub(event, 1, -#IDLE - 1) .. "}\n\n" end
  end
  local at, stop = find(event, self.text, 1, true)
  if at and byte(event, stop + 1) ~= QUOTE then
    if self.thinking then self:turn(false) end
  elseif self.chat and find(event, '"reasoning":"', 1, true) then
    self:turn(true)
  elseif self.chat and find(event, '"tool_calls":[', 1, true) then
    self:turn(false)
  else
    return not instead and PLAIN or nil -- an empty chunk: rare enough to parse
  end
  return DELTA, instead
end

function Chunks:glance(chunk)
  if find(chunk, "\n", 1, true) == #chunk - 1 and find(chunk, "}\n\n", -3, true) and byte(chunk, 7) == 123
    and sub(chunk, 1, 6) == "data: " then
    return self:quick(chunk)
  end
end

function Chunks:opened(head) -- where usage is hidden, every event of completions changes, and at its end
  return (self.chat or not self.hide) and find(head, '"choices":[{', 1, true) ~= nil
end

function Chunks:judge(frame)
  local judgement, instead = self:glance(frame)
  if judgement then return judgement, instead end
  local data = data_of(frame)
  if data == "[DONE]" then
    self.finished = true
    return PLAIN
  end
  local chunk = parse(data)
  if not chunk and not find(data, TAINT, 1, true) then return PLAIN end
  if not chunk or given(chunk.error) then return PLAIN, self:fault() end
  return self:read(chunk, frame)
end

function Chunks:read(chunk, frame)
  local choices, content, answer, last = 0, false, false, false
  for _, choice in ipairs(is_array(chunk.choices) and chunk.choices or {}) do
    if is_object(choice) then
      choices = choices + 1
      content = content or choice_content(choice)
      answer = answer or choice_content(choice, true)
      last = last or given(choice.finish_reason)
    end
  end
  if last then
    self.complete = true
    if content then self.deltas = self.deltas + 1 end -- before usage is read, and never where a stream is cut
  end
  local usage, instead = chunk.usage, nil
  if is_object(usage) then
    if choices == 0 or truthy(usage.prompt_tokens) or truthy(usage.completion_tokens) then read_usage(self, usage) end
    if self.hide and choices == 0 then return PLAIN, "" end
    if self.hide and not self.chat then instead = without_usage(frame) end
  end
  if content then self:turn(not answer) end
  return (content and not last) and DELTA or PLAIN, instead
end

function Chunks:judge_tail(tail)
  self.deltas = self.deltas + 1
  local usage = trailing_usage(tail)
  if usage and (truthy(usage.prompt_tokens) or truthy(usage.completion_tokens)) then read_usage(self, usage) end
end

function Chunks:fault()
  self.failed = true
  return CHUNKS_FAULT
end

function Chunks:ending(frame)
  local chunk = parse(repaired(data_of(frame))) or {}
  local head = "data: " .. members(chunk, { "id", "object", "created", "model", "system_fingerprint" })
  local last = self.chat and '"delta":{"role":"assistant","content":""}' or '"text":""'
  local finish = head .. '"choices":[{"index":0,"finish_reason":"length",' .. last .. "}]"
  if self.hide then return finish .. "}\n\n" .. DONE end
  local prompt, completion = self.prompt_estimate, self.deltas
  local usage = format('"usage":{"prompt_tokens":%.0f,"completion_tokens":%.0f,"total_tokens":%.0f}}\n\n',
    prompt, completion, prompt + completion)
  return finish .. (self.chat and "" or ZEROS) .. "}\n\n" .. head .. '"choices":[],' .. usage .. DONE
end

function Chunks:closing(broken)
  if self.finished then return "" end
  local lead = broken and self.terminator or ""
  if self.complete or self.failed then return lead .. DONE end
  return lead .. self:fault() .. DONE
end

-- An answer that is one JSON document. See processor/document.py. ---------------------------------------------------

local Document = {}
Document.__index = Document
local ERROR = '{"error"'
local BYTES_PER_TOKEN, AROUND = 5, 250 -- in an answer that came whole, and what JSON there is around its text

function Document:feed(chunk, final)
  local held = ""
  if self.is_error == nil then
    held = concat(self.held)
    local start = sub(gsub(sub(held .. chunk, 1, 2 * TAIL), "^%s+", ""), 1, #ERROR)
    local unsure = #start < #ERROR and sub(ERROR, 1, #start) == start and #held + #chunk < TAIL
    if not unsure or final then
      self.is_error = start == ERROR
      self.failed = self.is_error
    end
  end
  if self.is_error then return final and self.fault or (chunk ~= "" and "" or nil) end
  add(self.held, chunk)
  self.length, self.bytes = self.length + #chunk, self.bytes + #chunk
  if self.is_error == nil then return chunk ~= "" and "" or nil end
  if self.length > WHOLE then
    self.long = true
    self.held = { sub(concat(self.held), -TAIL) }
    self.length = TAIL
  end
  if final then
    self:settle(self)
    self.finished = self.finished or self.long
  end
  return held ~= "" and held .. chunk or nil
end

function Document:settle(tally)
  local text = concat(self.held)
  if not self.long then
    local document = parse(text)
    if document and document[1] then self:take(tally, document) end
    return
  end
  -- What a document too long to parse still says of itself: that it is long, hence not empty, and its counts.
  local counts, usage = trailing_counts(text), trailing_usage(text)
  if not counts and not usage then return end
  local document = { done = true, message = { "content", content = "…" }, embeddings = { [0] = ARRAY, "…" } }
  for _, name in ipairs(counts or {}) do document[name] = counts[name] end
  document.usage = usage or document.usage
  self:take(tally, document)
end

function Document:take(tally, document)
  self.read(tally, document)
  if tally.deltas > 0 then tally.guess = math.min(math.floor((self.bytes - AROUND) / BYTES_PER_TOKEN), self.most) end
end

function Document:usage()
  if self.finished or self.is_error then return usage_of(self) end
  local tally = empty_tally()
  self:settle(tally) -- a client that leaves with the last byte leaves no end to see
  return usage_of(tally)
end

local function read_native(tally, document)
  if document.done ~= true then return end
  tally.deltas = native_content(document) and 1 or 0
  read_final(tally, document)
end

local function read_embed(tally, document) -- the legacy /api/embeddings mostly reports nothing at all
  local prompt = document.prompt_eval_count
  if not given(prompt) and is_array(document.embeddings) and #document.embeddings == 0 then prompt = 0 end
  tally.finished = true
  report(tally, count(prompt), 0)
  read_durations(tally, document)
end

local function read_choices(tally, document)
  for _, choice in ipairs(is_array(document.choices) and document.choices or {}) do
    if is_object(choice) and choice_content(choice) then tally.deltas = tally.deltas + 1 end
  end
  tally.finished = true
  if is_object(document.usage) then read_usage(tally, document.usage) end
end

local function read_embeddings(tally, document)
  local prompt = is_object(document.usage) and count(document.usage.prompt_tokens) or nil
  if prompt == 0 and not (is_array(document.data) and #document.data == 0) then prompt = nil end
  tally.finished = true
  report(tally, prompt, 0)
end

-- An answer in an encoding that nothing here decompresses. It passes, and nothing of it was measured.
local Blind = {}
Blind.__index = Blind

function Blind:feed() return nil end

-- Which meter reads an answer ---------------------------------------------------------------------------------------

local NATIVE_TEXT = { ["/api/chat"] = '"content":"', ["/api/generate"] = '"response":"' }
local CHUNKED = { -- whether it is chat
  ["/v1/chat/completions"] = true, ["/v1/chat/secure_completion"] = true, ["/v1/completions"] = false,
}
local DOCUMENTS = {
  ["/api/chat"] = read_native, ["/api/generate"] = read_native, ["/api/embed"] = read_embed,
  ["/api/embeddings"] = read_embed, ["/v1/chat/completions"] = read_choices,
  ["/v1/chat/secure_completion"] = read_choices, ["/v1/completions"] = read_choices,
  ["/v1/embeddings"] = read_embeddings,
}
local DOCUMENT_FAULT = '{"error": {"message": "upstream error", "type": "bad_gateway", "code": 502}}\n'

for _, methods in ipairs({ Native, Chunks, Blind }) do methods.usage = usage_of end

local function readable(content_encoding)
  for coding in string.gmatch(content_encoding, "[^,]+") do
    local name = lower(match(coding, "^%s*(.-)%s*$"))
    if name ~= "" and name ~= "identity" then return false end
  end
  return true
end

-- A meter for an answer, or nil for an endpoint that has none. See processor.usage.meter_for.
local function meter(answer)
  local endpoint = gsub(answer.endpoint, "^/openai/", "/v1/")
  if not DOCUMENTS[endpoint] then return nil end
  local self = empty_tally()
  self.cut, self.streams = false, false
  if not readable(answer.content_encoding) then
    self.readable = false
    return setmetatable(self, Blind)
  end
  local kind = lower(match(match(answer.content_type, "^[^;]*"), "^%s*(.-)%s*$"))
  local native = NATIVE_TEXT[endpoint]
  if native and kind ~= "application/json" or CHUNKED[endpoint] ~= nil and kind == "text/event-stream" then
    self.streams = true
    self.cap, self.prompt_estimate = math.max(answer.cap, 0), answer.prompt_estimate or 0
    self.chat, self.hide, self.thinking, self.complete = CHUNKED[endpoint], answer.hide_usage, false, false
    self.text = native or self.chat and '"content":"' or '"text":"'
    setmetatable(self, native and Native or Chunks)
    self:fresh()
    return self
  end
  self.held, self.length, self.long, self.bytes, self.most = {}, 0, false, 0, math.max(answer.cap, 0)
  self.read = DOCUMENTS[endpoint]
  self.fault = sub(endpoint, 1, 5) == "/api/" and NATIVE_FAULT or DOCUMENT_FAULT
  return setmetatable(self, Document)
end

-- Decompression -----------------------------------------------------------------------------------------------------
-- Ollama is asked for no compression. What a proxy before it compresses all the same goes on plain, so that all
-- that follows reads and edits it like any answer (RFC 1950, 1951, 1952). Envoy has a filter that does it, but that ends
-- the answer with trailers, and where a later filter holds the last piece, as this one does, they never come.
--
-- An inflater is a coroutine that is given pieces and gives back what each adds. It raises on what is damaged, and on
-- what grows beyond all measure: it must not keep a thread of Envoy's busy.

local inflater
do
  local bit, yield = bit, coroutine.yield
  local GROWTH = 100 -- bytes for each byte, as Envoy's own decompressor
  local SLACK = 65536
  local WINDOW = 32768
  local MOST_FRESH = 4096 -- bytes that are kept as numbers
  local LENGTHS, DISTANCES = {}, {} -- of each symbol: the least, and how many bits are added to it
  local CRC = {} -- of each byte, for the sum that ends a gzip file
  -- The order in which the lengths of the codes for lengths come.
  local SHUFFLED = { 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15 }

  local function ranges(into, first, least, each, last)
    local symbol, extra = first, 0
    while symbol <= last do
      for _ = 1, (symbol == first) and 2 * each or each do
        into[symbol] = { least, extra }
        symbol, least = symbol + 1, least + 2 ^ extra
      end
      extra = extra + 1
    end
  end

  -- The codes by what their bits spell after a leading 1, made from how many bits each symbol has.
  local function codes(bits, from, to)
    local counts, next_code, found, code = { [0] = 0 }, {}, {}, 0
    for length = 1, 15 do counts[length] = 0 end
    for symbol = from, to do
      if bits[symbol] > 0 then counts[bits[symbol]] = counts[bits[symbol]] + 1 end
    end
    for length = 1, 15 do
      code = 2 * (code + counts[length - 1])
      if code + counts[length] > 2 ^ length then error("more codes than there is room for") end
      next_code[length] = code
    end
    for symbol = from, to do
      local length = bits[symbol]
      if length > 0 then
        found[2 ^ length + next_code[length]] = symbol - from
        next_code[length] = next_code[length] + 1
      end
    end
    return found
  end

  local Inflater = {}
  Inflater.__index = Inflater

  function Inflater:byte()
    while self.at > #self.input do
      local text = self:drain()
      self.input, self.at = yield(text), 1
      self.room = SLACK + GROWTH * #self.input
    end
    self.at = self.at + 1
    return byte(self.input, self.at - 1)
  end

  function Inflater:bits(count)
    while self.waiting < count do
      self.held = self.held + bit.lshift(self:byte(), self.waiting)
      self.waiting = self.waiting + 8
    end
    local value = bit.band(self.held, bit.lshift(1, count) - 1)
    self.held, self.waiting = bit.rshift(self.held, count), self.waiting - count
    return value
  end

  function Inflater:number(bytes) -- the lowest byte first
    local value = 0
    for place = 0, bytes - 1 do value = value + self:byte() * 256 ^ place end
    return value
  end

  function Inflater:symbol(of)
    local code = 1
    repeat
      code = 2 * code + self:bits(1)
      if code >= 65536 then error("no such code") end
    until of[code]
    return of[code]
  end

  function Inflater:put(value)
    self.window[self.total % WINDOW] = value
    self.total, self.fresh = self.total + 1, self.fresh + 1
    self.out[self.fresh] = value
    self.room = self.room - 1
    if self.room < 0 then error("it grows beyond all measure") end
    if self.fresh == MOST_FRESH then self:gather() end
  end

  function Inflater:gather() -- what was put since the last time, summed up
    if self.fresh == 0 then return end
    self:sum(self.out, self.fresh)
    self.ready[#self.ready + 1] = char(unpack(self.out, 1, self.fresh))
    self.fresh = 0
  end

  function Inflater:drain()
    self:gather()
    local text = concat(self.ready)
    self.ready = {}
    return text
  end

  function Inflater:checked(sum) -- at the end of a file, whose last bytes may not have been summed up yet
    self:gather()
    if sum() ~= self.adds then error("what it sums up to is not what it says") end
  end

  local function crc(self, out, count)
    local value = bit.bnot(self.adds)
    for place = 1, count do
      value = bit.bxor(CRC[bit.band(bit.bxor(value, out[place]), 255)], bit.rshift(value, 8))
    end
    self.adds = bit.bnot(value) % 4294967296
  end

  local function adler(self, out, count)
    local low, high = self.adds % 65536, math.floor(self.adds / 65536)
    for place = 1, count do
      low = (low + out[place]) % 65521
      high = (high + low) % 65521
    end
    self.adds = high * 65536 + low
  end

  function Inflater:tables() -- of a block that brings its own
    local literals, distances, count = self:bits(5) + 257, self:bits(5) + 1, self:bits(4) + 4
    local bits = {}
    for place = 1, 19 do bits[SHUFFLED[place]] = place <= count and self:bits(3) or 0 end
    local of, all, last = codes(bits, 0, 18), literals + distances, nil
    bits = {}
    local place = 0
    while place < all do
      local symbol, times = self:symbol(of), 1
      if symbol == 16 then
        symbol, times = last, 3 + self:bits(2)
        if not symbol then error("nothing to repeat") end
      elseif symbol > 16 then
        times = symbol == 17 and 3 + self:bits(3) or 11 + self:bits(7)
        symbol = 0
      end
      if place + times > all then error("more lengths than symbols") end
      for _ = 1, times do bits[place], place = symbol, place + 1 end
      last = symbol
    end
    return codes(bits, 0, literals - 1), codes(bits, literals, all - 1)
  end

  function Inflater:compressed(literals, distances)
    while true do
      local symbol = self:symbol(literals)
      if symbol == 256 then return end
      if symbol < 256 then
        self:put(symbol)
      else
        local length = LENGTHS[symbol] or error("no such length")
        local count = length[1] + self:bits(length[2])
        local distance = DISTANCES[self:symbol(distances)] or error("no such distance")
        local back = distance[1] + self:bits(distance[2])
        if back > self.total - self.start then error("before the beginning") end
        for _ = 1, count do self:put(self.window[(self.total - back) % WINDOW]) end
      end
    end
  end

  function Inflater:blocks()
    self.start, self.held, self.waiting = self.total, 0, 0
    repeat
      local last, kind = self:bits(1), self:bits(2)
      if kind == 0 then
        self.held, self.waiting = 0, 0 -- to the next whole byte
        local count, complement = self:number(2), self:number(2)
        if count + complement ~= 65535 then error("no such length") end
        for _ = 1, count do self:put(self:byte()) end
      elseif kind == 1 then
        self:compressed(Inflater.literals, Inflater.distances)
      elseif kind == 2 then
        self:compressed(self:tables())
      else
        error("no such block")
      end
    until last == 1
  end

  local function gzip(self)
    while true do -- a gzip file is one or more members
      if self:number(2) ~= 0x8B1F or self:byte() ~= 8 then error("not gzip") end
      local flags = self:byte()
      if flags > 31 then error("not gzip") end
      self:number(6)
      if bit.band(flags, 4) ~= 0 then
        for _ = 1, self:number(2) do self:byte() end
      end
      for _, name in ipairs({ 8, 16 }) do
        if bit.band(flags, name) ~= 0 then repeat until self:byte() == 0 end
      end
      if bit.band(flags, 2) ~= 0 then self:number(2) end
      self.adds, self.sum = 0, crc
      self:blocks()
      self:checked(function() return self:number(4) end)
      if self:number(4) ~= (self.total - self.start) % 4294967296 then error("not as long as it says") end
    end
  end

  local function deflate(self) -- it means the zlib format, but some send the bare stream
    local first, second = self:byte(), self:byte()
    local wrapped = first % 16 == 8 and (first * 256 + second) % 31 == 0
    if wrapped then
      if first > 0x78 or bit.band(second, 32) ~= 0 then error("not deflate") end
      self.adds, self.sum = 1, adler
    else
      self.input, self.at = char(first, second) .. sub(self.input, self.at), 1
    end
    self:blocks()
    if wrapped then
      self:checked(function()
        local high, low = self:byte() * 256 + self:byte(), self:byte() * 256 + self:byte()
        return high * 65536 + low
      end)
    end
    while true do -- what comes after the end is nobody's
      self.at = #self.input + 1
      self:byte()
    end
  end

  ranges(LENGTHS, 257, 3, 4, 284)
  LENGTHS[285] = { 258, 0 }
  ranges(DISTANCES, 0, 1, 2, 29)
  for value = 0, 255 do
    local sum = value
    for _ = 1, 8 do sum = sum % 2 == 1 and bit.bxor(bit.rshift(sum, 1), 0xEDB88320) or bit.rshift(sum, 1) end
    CRC[value] = sum
  end
  do
    local bits = {}
    for symbol = 0, 287 do bits[symbol] = symbol < 144 and 8 or symbol < 256 and 9 or symbol < 280 and 7 or 8 end
    Inflater.literals = codes(bits, 0, 287)
    for symbol = 0, 31 do bits[symbol] = 5 end
    Inflater.distances = codes(bits, 0, 31)
  end

  local INFLATERS = { gzip = gzip, ["x-gzip"] = gzip, deflate = deflate }

  -- What decompresses an answer of this Content-Encoding, piece by piece; nil where that is not needed, or not known.
  function inflater(content_encoding)
    local names = {}
    for name in string.gmatch(lower(content_encoding), "[^,%s]+") do
      if name ~= "identity" then names[#names + 1] = name end
    end
    local reads = #names == 1 and INFLATERS[names[1]]
    if not reads then return nil end
    local self = setmetatable({
      input = "", at = 1, held = 0, waiting = 0, window = {}, total = 0, start = 0, out = {}, fresh = 0, ready = {},
      room = 0, adds = 0, sum = function() end,
    }, Inflater)
    local step = coroutine.wrap(function() reads(self) end)
    step() -- to where it waits for the first piece
    return step
  end
end

-- What an upstream's error status becomes: status, type and message. See processor/answers.py.

local BAD_GATEWAY = { 502, "bad_gateway", "upstream error" }
local REFUSED = { 400, "bad_request", "the model server refused the request" }
local BUSY = { 503, "unavailable", "temporarily unavailable" }
local BY_STATUS = {
  [401] = BAD_GATEWAY, [403] = BAD_GATEWAY, [404] = { 403, "forbidden", "forbidden" }, [407] = BAD_GATEWAY,
  [408] = BUSY, [413] = { 413, "payload_too_large", "request body too large" }, [429] = BUSY, [503] = BUSY,
}

local function clean_status(status)
  if status >= 200 and status < 300 then error(status .. " is not an error") end
  local answer = BY_STATUS[status] or (status >= 400 and status < 500 and REFUSED or BAD_GATEWAY)
  return answer[1], answer[2], answer[3]
end

local function error_body(code, kind, message, request_id) -- the one error shape of the gateway
  return format('{"error":{"message":%s,"type":%s,"code":%.0f},"request_id":%s}', encode_string(repaired(message)),
    encode_string(repaired(kind)), code, encode_string(repaired(request_id)))
end

paddock = { meter = meter, inflater = inflater, clean_status = clean_status, error_body = error_body }

-- Envoy's two calls --------------------------------------------------------------------------------------------------------
-- A request comes here admitted: policy's grant is in the metadata of ext_authz, which no client can write. What the grant
-- says to change in the body is changed; the answer is read as it passes, and settled with processor in one call, for
-- which its last piece waits. Notes for the access log, in the metadata `paddock`, let policy settle what processor could
-- not: `meter` (that this filter was there), `deltas` so far, `used` (the reading), `settled`.
--
-- An error in a script lets everything pass, so nothing here may raise: what reads an upstream's bytes is called
-- protected, and where it fails the answer ends and all that was reserved is charged.

local AUTHZ, OWN = "envoy.filters.http.ext_authz", "paddock"
local SERVICE = "processor_edge"
-- Settling twice charges once, so a call is made again for as long as it takes to start a processor anew.
local SETTLE = {
  [":method"] = "POST", [":path"] = "/settle", [":authority"] = "processor",
  ["x-envoy-retry-on"] = "5xx,reset,connect-failure", ["x-envoy-max-retries"] = "15",
}
local PATIENCE_MS = 6000 -- processor itself gives a store that is down five seconds

local function note(handle, name, value) handle:streamInfo():dynamicMetadata():set(OWN, name, value) end

local function noted(handle, name)
  local held = handle:streamInfo():dynamicMetadata():get(OWN)
  return held and held[name]
end

local function granted(handle) -- the grant, and what of it is meant for the meter (policy/rules/grant.py, to_meter)
  local held = handle:streamInfo():dynamicMetadata():get(AUTHZ)
  if held then return held.grant, held.meter end
end

local function refuse(handle)
  note(handle, "refused", "1")
  handle:respond({[":status"] = "503"}, paddock.error_body(503, "unavailable", "temporarily unavailable", ""))
end

-- Without processor there is no service. What it said lately counts for a tenth of a second, so that a busy gateway asks
-- rarely.
local ALIVE = {
  [":method"] = "GET", [":path"] = "/alive", [":authority"] = "processor",
  ["x-envoy-retry-on"] = "5xx,reset,connect-failure", ["x-envoy-max-retries"] = "2", -- another worker may live
}
local FRESH_MS = 100
local heard = 0 -- by this thread of Envoy's, in milliseconds

local function alive(handle)
  local age = handle:timestamp() - heard
  if age >= 0 and age < FRESH_MS then return true end
  local reply = handle:httpCall(SERVICE, ALIVE, nil, 1000)
  if not reply or reply[":status"] ~= "200" then return false end
  heard = handle:timestamp()
  return true
end

-- The body with every splice made, as policy/rules/splices.py; nil where they do not fit it.
local function spliced(body, splices)
  local out, at, place = {}, 0, 1
  while place <= #splices do
    local offset, length, size, start = match(splices, "^(%d+) (%d+) (%d+):()", place)
    if not offset then return nil end
    offset, length, size = tonumber(offset), tonumber(length), tonumber(size)
    if offset < at or offset + length > #body or start + size - 1 > #splices then return nil end
    out[#out + 1] = sub(body, at + 1, offset)
    out[#out + 1] = sub(splices, start, start + size - 1)
    at, place = offset + length, start + size
  end
  out[#out + 1] = sub(body, at + 1)
  return concat(out)
end

local function prepare(handle) -- whether the request may go on
  local text, meant = granted(handle)
  local splices = text and meant and match(meant, "^%S+ %d+ [01] %d+ %d+ %S+ ?(.*)$")
  if not splices then return false end
  note(handle, "meter", "1")
  if splices ~= "" then
    local body = handle:body() -- before any call: a body that comes meanwhile can not be had any more
    local changed = body and spliced(body:getBytes(0, body:length()), splices)
    if not changed then return false end -- made for another body: what was judged is not what came
    body:setBytes(changed)
    handle:headers():replace("content-length", format("%d", #changed))
  end
  return alive(handle)
end

function envoy_on_request(handle)
  local fine, ready = pcall(prepare, handle)
  if not fine then handle:logErr("a request could not be prepared") end
  if not (fine and ready) then refuse(handle) end
end

-- What was used, in the words of policy/rules/metering.py.
local function reading(meter, grant, status, ttft)
  local usage = meter:usage()
  local fields = {format('"st":%d', status)}
  local outcome = usage.failed and "upstream_error" or meter.cut and "cut" or "completed"
  local completion = usage.completion
  if not usage.readable then outcome, completion, usage.prompt, usage.exact = "unreadable", grant.cap, nil, false end
  if usage.prompt then fields[#fields + 1] = format('"p":%.0f', usage.prompt) end
  fields[#fields + 1] = format('"c":%.0f,"x":%s,"outcome":"%s"', completion, tostring(usage.exact), outcome)
  if ttft then fields[#fields + 1] = format('"ttft":%.0f', math.max(ttft, 0)) end
  if usage.readable then
    fields[#fields + 1] = format('"load":%.0f,"prompt":%.0f,"eval":%.0f', usage.load, usage.prompt_eval, usage.eval)
  end
  return "{" .. concat(fields, ",") .. "}"
end

local function settle(handle, text, used)
  note(handle, "used", used)
  local reply = handle:httpCall(SERVICE, SETTLE, text .. "\n" .. used, PATIENCE_MS)
  if reply and reply[":status"] == "200" then
    heard = handle:timestamp()
    note(handle, "settled", "1")
  end
end

-- Of an upstream's headers those that say how to read the body (as processor/answers.py has them): what else it says may
-- name its machine, or mean something to browsers. What policy says to the client comes later on the way out.
local KEPT = {
  [":status"] = true, ["content-type"] = true, ["content-length"] = true, ["content-encoding"] = true,
  ["transfer-encoding"] = true,
}

local function keep_to_the_body(headers)
  local others = {}
  for name in pairs(headers) do -- nothing may be removed meanwhile
    if not KEPT[name] then others[#others + 1] = name end
  end
  for _, name in ipairs(others) do headers:remove(name) end
end

-- An upstream's error, in our words.
local function put_error(handle, status, request_id)
  local code, kind, message = paddock.clean_status(status)
  local body = paddock.error_body(code, kind, message, request_id)
  local headers = handle:headers()
  headers:remove("content-encoding")
  headers:remove("transfer-encoding")
  headers:replace(":status", format("%d", code))
  headers:replace("content-type", "application/json")
  headers:replace("content-length", format("%d", #body))
  if code == 503 then headers:replace("retry-after", "1") end
  handle:body(true):setBytes(body)
end

local function replace(handle, text, grant, status)
  put_error(handle, status, grant.request_id)
  settle(handle, text, format('{"st":%d,"p":0,"c":0,"x":true,"outcome":"upstream_error"}', status))
end

local function since(handle, grant) -- microseconds
  return tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND)) - grant.started_at
end

local function feed(meter, bytes, final, inflate)
  if not inflate then return meter:feed(bytes, final) end
  bytes = inflate(bytes)
  return meter:feed(bytes, final) or bytes
end

-- The meter fails on no input; should it, or should a compressed answer be damaged, nothing more passes, and the reading
-- says that nothing was read.
local function guarded(handle, meter, bytes, final, inflate)
  if meter.broken then return "" end
  local fine, instead = pcall(feed, meter, bytes, final, inflate)
  if fine then return instead end
  handle:logErr(inflate and "a compressed answer could not be read" or "the meter failed")
  meter.broken, meter.readable = true, false
  meter.usage = function() return { readable = false } end
  return ""
end

local function read_document(handle, text, grant, meter, status, inflate)
  local body = handle:body()
  local ttft = since(handle, grant)
  local instead = guarded(handle, meter, body and body:getBytes(0, body:length()) or "", true, inflate)
  if meter.broken then instead = meter.fault end
  if instead and body then
    body:setBytes(instead)
    handle:headers():replace("content-length", format("%d", #instead))
  end
  settle(handle, text, reading(meter, grant, status, ttft))
end

local function read_stream(handle, text, grant, meter, status, length, inflate)
  local seen, noted, settled, told = 0, 0, false, false
  local ttft, last, tail
  note(handle, "deltas", 0)
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    seen = seen + size
    local final = size == 0 or seen == length -- Envoy hands over an empty piece at the end, and nowhere else
    local bytes = size > 0 and chunk:getBytes(0, size) or ""
    ttft = ttft or since(handle, grant)
    local instead = guarded(handle, meter, bytes, final, inflate)
    if instead then chunk:setBytes(instead) end
    if meter.deltas ~= noted then
      noted = meter.deltas
      note(handle, "deltas", noted)
    end
    if not meter.readable and not told then -- whatever comes, all that was reserved is charged
      told = true
      note(handle, "used", reading(meter, grant, status, ttft))
    end
    last, tail = chunk, instead or bytes
    -- Its own last word is an end, too: a client that has that has all, and may leave. Nowhere else may a call be made: what
    -- comes meanwhile passes unread.
    if not settled and (final or meter.finished) then
      settled = true
      settle(handle, text, reading(meter, grant, status, ttft))
    end
  end
  if settled then return end
  -- It ended with a piece that was not empty, or by trailers, and then that piece is gone.
  local instead = guarded(handle, meter, "", true, inflate)
  if instead and last then pcall(last.setBytes, last, tail .. instead) end
  settle(handle, text, reading(meter, grant, status, ttft))
end

function envoy_on_response(handle)
  local text, meant = granted(handle)
  if not meant then return end -- refused before it came here
  local headers = handle:headers()
  local status = tonumber(headers:get(":status")) or 0
  local refused = noted(handle, "refused")
  if refused and status == 503 then return end
  -- To who says that it speaks gRPC, Envoy tells its own errors in headers alone, under 200: nothing came from upstream.
  local of_grpc = headers:get("grpc-status")
  keep_to_the_body(headers)
  local endpoint, cap, hide, estimate, started, id = match(meant, "^(%S+) (%d+) ([01]) (%d+) (%d+) (%S+)")
  local grant = {
    endpoint = endpoint, cap = tonumber(cap), hide_usage = hide == "1", prompt_tokens = tonumber(estimate),
    started_at = tonumber(started), request_id = id or "",
  }
  local meter, inflate
  if refused and of_grpc then return put_error(handle, 503, grant.request_id) end
  if not endpoint or of_grpc then status = 502 end
  if status > 199 and status < 300 then
    local encoding = headers:get("content-encoding") or ""
    inflate = encoding ~= "" and paddock.inflater(encoding)
    if inflate then
      headers:remove("content-encoding")
      encoding = ""
    end
    meter = paddock.meter({
      endpoint = endpoint, content_type = headers:get("content-type") or "", content_encoding = encoding,
      hide_usage = grant.hide_usage, cap = grant.cap, prompt_estimate = grant.prompt_tokens,
    })
    if not meter then status = 502 end
  end
  if not meter then return replace(handle, text, grant, status) end
  local length = tonumber(headers:get("content-length") or "")
  if not meter.streams and length and length <= WHOLE then
    return read_document(handle, text, grant, meter, status, inflate)
  end
  -- What is taken out or put in makes a stated length wrong.
  headers:remove("content-length")
  read_stream(handle, text, grant, meter, status, length, inflate)
end
