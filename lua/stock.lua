#!lua flags=no-writes
-- stock: what the sale's page shows.
-- Guarantee: the answer is of the caller's epoch, or STALE_EPOCH.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then skus
-- Answer:
--   nextDueMs, opensAt, closesAt, reserving, journal length, held holds, paying holds, then free|live for each sku
local book, refusal = open_book(false)
if not book then return refusal end
local next_due = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
local results = {
  next_due[2] or '0', whole(book.opens), whole(book.closes), book.reserving and '1' or '0',
  whole(redis.call('XLEN', KEYS[8])), whole(redis.call('ZCARD', KEYS[5])), whole(redis.call('ZCARD', KEYS[6])),
}
for i = 4, #ARGV do
  local free, live = units_of(book, 'free', ARGV[i]), units_of(book, 'live', ARGV[i])
  if not free or not live then broken('free of an item is missing') end
  results[#results + 1] = whole(free) .. '|' .. whole(live)
end
return answer(book, results)
