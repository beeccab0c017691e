#!lua flags=no-writes
-- stock: what the sale's page shows.
-- Guarantee: the answer is of the caller's epoch, or STALE_EPOCH.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then skus
-- Answer:
--   nextDueMs, opensAt, closesAt, reserving, journal length, held holds, paying holds, then free|live for each sku
local sale, refusal = open_sale(false)
if not sale then return refusal end
local next_due = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
local results = {
  next_due[2] or '0', whole(sale.opens), whole(sale.closes), sale.reserving and '1' or '0',
  whole(redis.call('XLEN', KEYS[8])), whole(redis.call('ZCARD', KEYS[5])), whole(redis.call('ZCARD', KEYS[6])),
}
for i = 4, #ARGV do
  local free, live = units_of(sale, 'free', ARGV[i]), units_of(sale, 'live', ARGV[i])
  if not free or not live then broken('free of an item is missing') end
  results[#results + 1] = whole(free) .. '|' .. whole(live)
end
return answer(sale, results)
