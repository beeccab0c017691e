#!lua flags=allow-oom
-- expire: held -> expired for holds whose time is over, oldest first, a bounded batch.
-- Guarantee: each hold is given back once; paying holds have no deadline here and are never swept.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 max holds
-- Answer:
--   expired         how many were given back; `max` means there may be more
local sale, refusal = open_sale(true)
if not sale then return refusal end
sale.tell = true
local n = sweep(sale, digits(ARGV[4], 'max'))
commit(sale)
return answer(sale, { string.format('%d', n) })
