#!lua flags=allow-oom
-- top_up: a stock change of the operator, or a refunded unit put back on sale, applied once by its id (rules K and L).
-- Guarantee: one id moves free units once per epoch; units that are held are never taken away.
-- KEYS  the sale's eight (prelude); 9 moves hash, id -> delta
-- ARGV  1-3 (prelude); 4 id; 5 sku; 6 delta, an integer that is not 0, or 0 when no unit comes back;
--       7 customer whose paid units end with it, or ''; 8 how many of them
-- Answer:
--   APPLIED|free|live   now, or before by the same id
--   BELOW|free|live     fewer are free than are to be taken: nothing done
--   UNKNOWN_SKU         no such item in this sale
local sale, refusal = open_sale(true)
if not sale then return refusal end
local id, sku, customer = ARGV[4], ARGV[5], ARGV[7]
if not string.find(ARGV[6], '^%-?%d+$') or #ARGV[6] > 12 then broken('delta is not a whole number') end
local delta = tonumber(ARGV[6])

local free = units_of(sale, 'free', sku)
if not free then return answer(sale, { 'UNKNOWN_SKU' }) end
local live = units_of(sale, 'live', sku)
local function counts(word)
  return { word .. '|' .. string.format('%d', sale.free[sku]) .. '|' .. string.format('%d', live) }
end

if redis.call('HEXISTS', KEYS[9], id) == 1 then return answer(sale, counts('APPLIED')) end
if free + delta < 0 then
  sweep(sale, 100)
  commit(sale)
  if sale.free[sku] + delta < 0 then return answer(sale, counts('BELOW')) end
  sale.journal, sale.changed, live = {}, {}, sale.live[sku]
end
add_units(sale, 'free', sku, delta)
if customer ~= '' then add_customer_units(sale, customer, -digits(ARGV[8], 'units')) end
redis.call('HSET', KEYS[9], id, ARGV[6])
commit(sale)
return answer(sale, counts('APPLIED'))
