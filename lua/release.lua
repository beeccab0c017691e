#!lua flags=allow-oom
-- release: held -> released, because the shopper said so.
-- Guarantee: the units come back once; a hold that is paying or confirmed is never released here.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then for each request: key, customer
-- Per request:
--   RELEASED|hold   now or before
--   EXPIRED|hold    its time was over
--   PAYING|hold | CONFIRMED|hold  refused
--   LOST            no such hold in this Redis
local sale, refusal = open_sale(true)
if not sale then return refusal end
sale.tell = true

local function release(key, customer)
  local h = hold_of(sale, key)
  if not h or h.customer ~= customer then return 'LOST' end
  if h.state == 'h' then give_back(sale, key, h, (h.deadline <= sale.clock and sale.paused == 0) and 'x' or 'r') end
  local words = { r = 'RELEASED|', x = 'EXPIRED|', p = 'PAYING|', c = 'CONFIRMED|' }
  return words[h.state] .. hold_pack(h)
end

local results = {}
for i = 4, #ARGV, 2 do results[#results + 1] = release(ARGV[i], ARGV[i + 1]) end
commit(sale)
return answer(sale, results)
