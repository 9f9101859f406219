-- Do a thing once: a claim is held by whoever does it, marked done when it is done, and free again when it failed.
--
-- KEYS: 1 the claim
-- ARGV: 1 what to do ('take', 'hold', 'finish', 'drop'), 2 who, 3 for how many ms: a lease, or how long it stays done
-- Returns 'ok'; or 'done', or 'held' where somebody else has it. A lease that ran out is nobody's.
local found = redis.call('GET', KEYS[1])
local owner = 'by:' .. ARGV[2] -- no owner is called 'done'
if found == 'done' then return 'done' end
if ARGV[1] == 'finish' then -- done is done, whoever thinks to hold it by now
  redis.call('SET', KEYS[1], 'done', 'PX', ARGV[3])
  return 'ok'
end
if found and found ~= owner then return 'held' end
if ARGV[1] == 'drop' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], owner, 'PX', ARGV[3])
end
return 'ok'
