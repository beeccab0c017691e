#!lua flags=allow-oom
-- confirm: paying -> confirmed, with the order's entry in the journal in the same script.
-- Guarantee: only the payment the hold is bound to can confirm it (rule C).
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then for each request: key, reference
-- Per request:
--   CONFIRMED|hold        now, or before under the same reference
--   OTHER_PAYMENT|hold    the hold speaks of another payment, or is not paying: nothing done
--   LOST                  no such hold in this Redis
local sale, refusal = open_sale(true)
if not sale then return refusal end
sale.tell = true

local function confirm(key, ref)
  local h = hold_of(sale, key)
  if not h then return 'LOST' end
  if h.ref ~= ref or (h.state ~= 'p' and h.state ~= 'c') then return 'OTHER_PAYMENT|' .. hold_pack(h) end
  if h.state == 'p' then
    for _, line in ipairs(cart_of(h.lines)) do add_units(sale, 'live', line.sku, -line.n) end
    h.state, h.was_paying = 'c', true
    record(sale, key, h)
  end
  return 'CONFIRMED|' .. hold_pack(h)
end

local results = {}
for i = 4, #ARGV, 2 do results[#results + 1] = confirm(ARGV[i], ARGV[i + 1]) end
commit(sale)
return answer(sale, results)
