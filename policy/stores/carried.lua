-- Drop events that are in PostgreSQL, and remember up to which: a seed from before that would miss them.
--
-- KEYS: 1 events, 2 about
-- ARGV: 1 epoch in which they were read, 2 id of the last, 3 the id after it
-- Returns 1; 0 where the store has begun another life since.
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[1] then return 0 end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[3])
redis.call('HSET', KEYS[2], 'carried', ARGV[2])
return 1
