#!lua flags=no-writes
-- list: a customer's own reservations, oldest first.
-- Guarantee: the answer is of the caller's epoch, or STALE_EPOCH.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 customer
-- Answer:
--   key|hold ...    each of the customer's newest reservations
local sale, refusal = open_sale(false)
if not sale then return refusal end
local results = {}
for key in string.gmatch(customer_of(sale, ARGV[4]).keys, '[^,]+') do
  local packed = redis.call('HGET', KEYS[4], key)
  if packed then results[#results + 1] = key .. '|' .. packed end
end
return answer(sale, results)
