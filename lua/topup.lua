#!lua flags=allow-oom
-- topup: a stock change of the operator, or a refunded unit put back on sale, applied once by its id (rules K and L).
-- Guarantee: one id moves free units once per epoch; units that are held are never taken away.
-- KEYS  the sale's eight (prelude); 9 moves hash, id -> delta
-- ARGV  1-3 (prelude); 4 id; 5 sku; 6 delta, an integer that is not 0, or 0 when no unit comes back;
--       7 customer whose paid units end with it, or ''; 8 how many of them
-- Answer:
--   APPLIED|free|live   now, or before by the same id
--   BELOW|free|live     fewer are free than are to be taken: nothing done
--   UNKNOWN_SKU         no such item in this sale
local book, refusal = open_book(true)
if not book then return refusal end
local id, sku, customer = ARGV[4], ARGV[5], ARGV[7]
if not string.find(ARGV[6], '^%-?%d+$') or #ARGV[6] > 12 then broken('delta is not a whole number') end
local delta = tonumber(ARGV[6])

local free = units_of(book, 'free', sku)
if not free then return answer(book, { 'UNKNOWN_SKU' }) end
local live = units_of(book, 'live', sku)
local function figures(word) return { word .. '|' .. string.format('%d', book.free[sku]) .. '|' .. string.format('%d', live) } end

if redis.call('HEXISTS', KEYS[9], id) == 1 then return answer(book, figures('APPLIED')) end
if free + delta < 0 then
  sweep(book, 100)
  commit(book)
  if book.free[sku] + delta < 0 then return answer(book, figures('BELOW')) end
  book.journal, book.changed, live = {}, {}, book.live[sku]
end
add_units(book, 'free', sku, delta)
if customer ~= '' then add_customer_units(book, customer, -digits(ARGV[8], 'units')) end
redis.call('HSET', KEYS[9], id, ARGV[6])
commit(book)
return answer(book, figures('APPLIED'))
