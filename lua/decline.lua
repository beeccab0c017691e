#!lua flags=allow-oom
-- decline: paying -> held, with at least graceMs left to try again; or -> released when there is no unit to sell.
-- Without a grace the hold has the time that it had when it was pinned: its clock stood meanwhile.
-- Guarantee: only the payment the hold is bound to can end its paying (rule C).
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); then for each request: key, reference, graceMs (0 = none), to ('h' held, 'r' released)
-- Per request:
--   HELD|hold             held, now or before, after this reference
--   RELEASED|hold         released, now or before
--   OTHER_PAYMENT|hold    the hold speaks of another payment, or is confirmed: nothing done
--   LOST                  no such hold in this Redis
local sale, refusal = open_sale(true)
if not sale then return refusal end
sale.tell = true

local function decline(key, ref, grace_ms, to)
  local h = hold_of(sale, key)
  if not h then return 'LOST' end
  if h.ref ~= ref or h.state == 'c' then return 'OTHER_PAYMENT|' .. hold_pack(h) end
  if h.state == 'h' then return 'HELD|' .. hold_pack(h) end
  if h.state ~= 'p' then return 'RELEASED|' .. hold_pack(h) end
  h.was_paying = true
  if to == 'r' then
    give_back(sale, key, h, 'r')
    return 'RELEASED|' .. hold_pack(h)
  end
  h.state = 'h'
  local grace = digits(grace_ms, 'graceMs')
  local since = grace == 0 and tonumber(redis.call('ZSCORE', KEYS[6], key) or nil)
  if since then h.deadline = h.deadline + math.max(0, sale.now - since) end
  h.deadline = math.max(h.deadline, sale.clock + grace)
  record(sale, key, h)
  return 'HELD|' .. hold_pack(h)
end

local results = {}
for i = 4, #ARGV, 4 do results[#results + 1] = decline(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
commit(sale)
return answer(sale, results)
