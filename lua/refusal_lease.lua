#!lua flags=allow-oom
-- refusal_lease: what a process needs to refuse without asking Redis, and the promise that makes it safe (rule O).
-- Guarantee: an item that this answers with nothing free is granted to nobody, by any process, before the lease is
-- over. So a process that refuses within its lease, and only customers who are not listed, never refuses one whose
-- request was granted.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 leaseMs; 5 customers the caller knows of, as a count; 6 customers listed at most; then skus
-- Answer:
--   nextDueMs, opensAt, closesAt, reserving, customers in all, free|live for each sku, then the customers if their
--   count is another than the caller's and at most the given number
local sale, refusal = open_sale(true)
if not sale then return refusal end
local lease_ms, known, most = digits(ARGV[4], 'leaseMs'), digits(ARGV[5], 'known'), digits(ARGV[6], 'most')
if lease_ms > REFUSAL_LEASE_MS_MAX then broken('refusal lease is too long') end
local next_due = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
local customers = redis.call('HLEN', KEYS[7])
local reserving = sale.reserving and '1' or '0'
local results = { next_due[2] or '0', whole(sale.opens), whole(sale.closes), reserving, whole(customers) }
local out = {}
for i = 7, #ARGV do
  local free, live = units_of(sale, 'free', ARGV[i]), units_of(sale, 'live', ARGV[i])
  if not free or not live then broken('free of an item is missing') end
  results[#results + 1] = whole(free) .. '|' .. whole(live)
  if free == 0 then out[#out + 1] = 'out:' .. ARGV[i]; out[#out + 1] = whole(sale.now + lease_ms) end
end
if #out > 0 then redis.call('HSET', KEYS[1], unpack(out)) end
if customers ~= known and customers <= most then
  for _, customer in ipairs(redis.call('HKEYS', KEYS[7])) do results[#results + 1] = customer end
end
return answer(sale, results)
