#!lua
-- reserve: takes all lines of each request or none, and starts the hold's clock.
-- Guarantee: one reservation key is granted at most once, whatever is repeated; a repeat is answered before any
-- refusal.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 sweepMax holds given back when stock is short; 5 journalMax entries that may wait for
--       Postgres; then for each request: key, customer, lines 'sku:quantity,...' in order of sku
-- Per request:
--   HELD|deadlineMs               granted, deadline on the sale's clock
--   REPLAYED|hold                 the same key and lines: the hold as it is now
--   MISMATCH                      the same key with other lines
--   NOT_OPEN | CLOSED | PAUSED    by Redis' clock, by the operator
--   BACKLOG                       Postgres is too far behind
--   LIMIT|units                   the customer's units would pass the limit
--   SHORT|nextDueMs|sku:free:live,...  some line is short; live: may come back; nextDueMs on the sale's clock, 0 when
--                                 nothing is due
local sale, refusal = open_sale(true)
if not sale then return refusal end
local sweep_max, swept = digits(ARGV[4], 'sweepMax'), false
local backlog = redis.call('XLEN', KEYS[8]) >= digits(ARGV[5], 'journalMax')

local function short(cart)
  for _, line in ipairs(cart) do
    if grantable(sale, line.sku) < line.n then return true end
  end
  return false
end

local function short_answer(cart)
  local parts, due = {}, tonumber(redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2] or '0')
  for i, line in ipairs(cart) do
    local units, at = returning(sale, line.sku)
    if at and (due == 0 or at < due) then due = at end
    parts[i] = string.format('%s:%d:%d', line.sku, grantable(sale, line.sku), units)
  end
  return 'SHORT|' .. whole(due) .. '|' .. table.concat(parts, ',')
end

-- Before a customer is refused for what they hold: what is past its time does not count.
local function expire_own(c)
  if sale.paused > 0 then return end
  for key in string.gmatch(c.keys, '[^,]+') do
    local h = hold_of(sale, key)
    if h and h.state == 'h' and h.deadline <= sale.clock then give_back(sale, key, h, 'x') end
  end
end

local function reserve(key, customer, lines)
  local h = hold_of(sale, key)
  if h then
    if h.customer ~= customer or h.lines ~= lines then return 'MISMATCH' end
    if h.state == 'h' and h.deadline <= sale.clock and sale.paused == 0 then give_back(sale, key, h, 'x') end
    return 'REPLAYED|' .. hold_pack(h)
  end
  if sale.now < sale.opens then return 'NOT_OPEN' elseif sale.now >= sale.closes then return 'CLOSED' end
  if not sale.reserving then return 'PAUSED' end
  if backlog then return 'BACKLOG' end
  local cart = cart_of(lines)
  if cart.units < 1 then unfit('a request without units') end
  local c = customer_of(sale, customer)
  if c.units + cart.units > sale.limit then expire_own(c) end
  if c.units + cart.units > sale.limit then return 'LIMIT|' .. whole(c.units) end
  if short(cart) and not swept then sweep(sale, sweep_max); swept = true end
  if short(cart) then return short_answer(cart) end
  for _, line in ipairs(cart) do
    add_units(sale, 'free', line.sku, -line.n)
    add_units(sale, 'live', line.sku, line.n)
  end
  add_customer_units(sale, customer, cart.units)
  c.keys = c.keys == '' and key or c.keys .. ',' .. key
  if #c.keys > KEYS_OF_CUSTOMER_MAX * (#key + 1) then c.keys = string.gsub(c.keys, '^[^,]*,', '', 1) end
  h = { state = 'h', deadline = sale.clock + sale.hold_ms, ref = '', lines = lines, customer = customer }
  record(sale, key, h)
  return 'HELD|' .. whole(h.deadline)
end

local keys, customers = {}, {}
for i = 6, #ARGV, 3 do keys[#keys + 1] = ARGV[i]; customers[#customers + 1] = ARGV[i + 1] end
read_ahead(sale, keys, customers)
local results = {}
for i = 6, #ARGV, 3 do results[#results + 1] = reserve(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
commit(sale)
return answer(sale, results)
