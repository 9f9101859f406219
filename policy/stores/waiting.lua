-- The oldest events of a shard, and in which life of the store they were written.
--
-- KEYS: 1 events, 2 about
-- ARGV: 1 how many at most
-- Returns {epoch, events as XRANGE has them}
return {redis.call('HGET', KEYS[2], 'epoch') or '', redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])}
