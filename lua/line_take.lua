#!lua flags=allow-oom
-- line_take: the first payments of a line that needs no permits (cash on delivery).
-- Guarantee: a reference is handed out once; one lost with its taker is put back by reconcile.
-- KEYS  1 line zset
-- ARGV  1 max
-- Answer:
--   references, first come first
local taken = redis.call('ZPOPMIN', KEYS[1], ARGV[1])
local results = { 'OK' }
for i = 1, #taken, 2 do results[#results + 1] = taken[i] end
return results
