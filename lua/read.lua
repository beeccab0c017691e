#!lua flags=no-writes
-- read: holds as they are, by key.
-- Guarantee: the answer is of the caller's epoch, or STALE_EPOCH.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then reservation keys
-- Per key:
--   hold | ''       '' when this Redis has no such hold
local sale, refusal = open_sale(false)
if not sale then return refusal end
local results = {}
for i = 4, #ARGV do results[#results + 1] = redis.call('HGET', KEYS[4], ARGV[i]) or '' end
return answer(sale, results)
