#!lua
-- pay: held -> paying. The hold leaves the expiry clock and is bound to one payment reference.
-- Guarantee: of any number of callers one reference is bound; the others join it. A new reference is bound only by a
-- caller who names the one before it, so a declined attempt is always seen before the next.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then for each request: key, customer, reference, referenceBefore ('' for none)
-- Per request:
--   PAYING|hold           bound to this reference (also when repeated with it)
--   JOINED|hold           already paying under another reference
--   CONFIRMED|hold        already confirmed
--   DECLINED_BEFORE|hold  held, but the last reference is not referenceBefore
--   RELEASED|hold | EXPIRED|hold  too late
--   PAUSED                paying is paused
--   LOST                  no such hold in this Redis
local sale, refusal = open_sale(true)
if not sale then return refusal end
sale.tell = true

local function pay(key, customer, ref, before)
  local h = hold_of(sale, key)
  if not h or h.customer ~= customer then return 'LOST' end
  if h.state == 'h' and h.deadline <= sale.clock and sale.paused == 0 then give_back(sale, key, h, 'x') end
  if h.state == 'p' then return (h.ref == ref and 'PAYING|' or 'JOINED|') .. hold_pack(h) end
  if h.state == 'c' then return 'CONFIRMED|' .. hold_pack(h) end
  if h.state == 'r' then return 'RELEASED|' .. hold_pack(h) end
  if h.state == 'x' then return 'EXPIRED|' .. hold_pack(h) end
  if sale.paused > 0 then return 'PAUSED' end
  if ref == '' or string.find(ref, '|', 1, true) then unfit('a reference that a hold cannot carry') end
  if h.ref ~= before then return 'DECLINED_BEFORE|' .. hold_pack(h) end
  h.state, h.ref = 'p', ref
  record(sale, key, h)
  return 'PAYING|' .. hold_pack(h)
end

local results = {}
for i = 4, #ARGV, 4 do results[#results + 1] = pay(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
commit(sale)
return answer(sale, results)
