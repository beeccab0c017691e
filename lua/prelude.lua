-- Put in by the loader after the first line of every transition of a sale.
--
-- A script opens a sale, changes it in memory, and commits once. Nothing is written before `commit`, so an
-- error on the way (a broken invariant, a bad argument) leaves Redis as it was: Lua in Redis does not roll back.
--
-- KEYS, the same eight for every transition, one slot:
--   1 sale hash       epoch, seq, settings, clock, out:<sku> until when a process may still refuse the item from memory
--   2 free hash       sku -> units nobody holds
--   3 live hash       sku -> units of reservations held or paying
--   4 holds hash      reservation key -> state|deadlineMs|reference|lines|customer
--   5 due zset        reservation key -> deadline on the sale's clock, ms; held ones only
--   6 paying zset     reservation key -> since when, Redis clock, ms
--   7 customers hash  customer -> units|reservation keys, newest last
--   8 journal stream  one entry per call: v, e(poch), s(eq), t(ime ms), b(ody: reservation key|hold, a line each)
-- ARGV, the first three of every transition:
--   1 epoch           the caller's; another one answers STALE_EPOCH
--   2 seqMin          highest sequence number the caller has seen; a lower one in Redis answers STALE_EPOCH
--   3 notAfterMs      Redis clock; a call that arrives later answers LATE and does nothing; 0 = no limit
--
-- The sale's clock is Redis' clock minus the time for which the sale stood still (`shift`), so pausing payments or
-- extending all holds moves one number instead of every deadline.

local KEYS_OF_CUSTOMER_MAX = 50
local REFUSAL_LEASE_MS_MAX = 1000

-- A count that cannot be right: the sale is rebuilt. A fault of one request alone: that one is refused, and the others
-- of its call are asked again.
local function broken(what) error({ err = 'BROKEN ' .. what }) end
local function unfit(what) error({ err = 'ARGUMENT ' .. what }) end

local function digits(s, what)
  if not s or not string.find(s, '^%d+$') or #s > 15 then broken(what .. ' is not a whole number') end
  return tonumber(s)
end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Whole numbers as text: tostring would write large ones as 1.7e+12. A call writes the same few instants again and
-- again.
local texts = {}
local function whole(n)
  local text = texts[n]
  if not text then
    text = string.format('%d', n)
    texts[n] = text
  end
  return text
end

local function hold_pack(h)
  return h.state .. '|' .. whole(h.deadline) .. '|' .. h.ref .. '|' .. h.lines .. '|' .. h.customer
end

local function hold_parse(packed)
  local state, deadline, ref, lines, customer = string.match(packed, '^(%a)|(%d+)|([^|]*)|([^|]*)|(.*)$')
  if not state then broken('hold cannot be read') end
  return { state = state, deadline = tonumber(deadline), ref = ref, lines = lines, customer = customer }
end

local function customer_parse(packed)
  if not packed then return { units = 0, keys = '' } end
  local units, keys = string.match(packed, '^(%d+)|(.*)$')
  return { units = digits(units, 'units of a customer'), keys = keys }
end

-- 'sku:quantity,sku:quantity' as { units, { sku, quantity }, ... }. Most carts of a call are alike, so each text is
-- parsed once.
local carts = {}
local function cart_of(lines)
  local cart = carts[lines]
  if cart then return cart end
  cart = { units = 0 }
  for sku, quantity in string.gmatch(lines, '([^:,]+):(%d+)') do
    local n = tonumber(quantity)
    cart.units = cart.units + n
    cart[#cart + 1] = { sku = sku, n = n }
  end
  carts[lines] = cart
  return cart
end

-- The sale, or nil and the refusal to answer.
local function open_sale(writes)
  local s = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'fenced', 'shift', 'pausedAt', 'opensAt', 'closesAt', 'holdMs',
    'limit', 'reserving')
  if not s[1] or s[1] ~= ARGV[1] or s[3] or not s[2] or tonumber(s[2]) < tonumber(ARGV[2]) then
    return nil, { 'STALE_EPOCH', s[1] or '', s[2] or '' }
  end
  local now = now_ms()
  local late = digits(ARGV[3], 'notAfterMs')
  if writes and late > 0 and now > late then return nil, { 'LATE', string.format('%d', now) } end
  local shift, paused = digits(s[4], 'shift'), digits(s[5], 'pausedAt')
  return {
    epoch = s[1], seq = tonumber(s[2]), now = now, shift = shift, paused = paused,
    clock = (paused > 0 and paused or now) - shift,
    opens = digits(s[6], 'opensAt'), closes = digits(s[7], 'closesAt'), hold_ms = digits(s[8], 'holdMs'),
    limit = digits(s[9], 'limit'), reserving = s[10] == '1',
    free = {}, live = {}, holds = {}, customers = {}, journal = {}, changed = {}, told_out = {}, dirty = false,
  }
end

-- Units of `sku`: free or live. A missing field is unknown, never 0.
local function units_of(sale, which, sku)
  local n = sale[which][sku]
  if not n then
    n = redis.call('HGET', which == 'free' and KEYS[2] or KEYS[3], sku)
    if not n then return nil end
    n = digits(n, which .. ' of an item')
    sale[which][sku] = n
  end
  return n
end

-- Units that may be granted now: none while some process may still refuse the item from memory (refusal_lease.lua).
local function grantable(sale, sku)
  if sale.told_out[sku] == nil then
    local ends = tonumber(redis.call('HGET', KEYS[1], 'out:' .. sku) or '0')
    -- One that ends later than any lease can was given before the clock was set back (rule T).
    sale.told_out[sku] = ends > sale.now and ends <= sale.now + REFUSAL_LEASE_MS_MAX and ends or false
  end
  local have = units_of(sale, 'free', sku)
  if not have then broken('free of an item is missing') end
  return sale.told_out[sku] and 0 or have
end

-- Units that may come back: live ones, and those that are free but still shown as out (SOLD_OUT would send away a
-- shopper who could have one in a moment); for the latter also when, on the sale's clock.
local function returning(sale, sku)
  local live, hidden = units_of(sale, 'live', sku) or 0, units_of(sale, 'free', sku) - grantable(sale, sku)
  if hidden == 0 then return live end
  return live + hidden, sale.clock + sale.told_out[sku] - sale.now
end

local function add_units(sale, which, sku, n)
  local have = units_of(sale, which, sku)
  if not have then broken(which .. ' of an item is missing') end
  if have + n < 0 then broken(which .. ' of an item would be negative') end
  sale[which][sku] = have + n
  sale.dirty = true
end

-- Reads holds and customers of many requests at once; false stands for one that is not there.
local function read_ahead(sale, keys, customers)
  for i, packed in ipairs(redis.call('HMGET', KEYS[4], unpack(keys))) do
    sale.holds[keys[i]] = packed and hold_parse(packed)
  end
  for i, packed in ipairs(redis.call('HMGET', KEYS[7], unpack(customers))) do
    sale.customers[customers[i]] = customer_parse(packed)
  end
end

local function hold_of(sale, key)
  local h = sale.holds[key]
  if h == nil then
    local packed = redis.call('HGET', KEYS[4], key)
    h = packed and hold_parse(packed)
    sale.holds[key] = h
  end
  return h or nil
end

-- Writes down that the hold is as it is now; `commit` stores it and moves it between the clocks.
local function record(sale, key, h)
  local packed = hold_pack(h)
  -- One line of the journal, which Postgres must be able to take.
  if string.find(packed, '%c') then unfit('a hold with a control character') end
  sale.holds[key] = h
  sale.changed[key] = packed
  sale.journal[#sale.journal + 1] = key .. '|' .. packed
end

local function customer_of(sale, customer)
  local c = sale.customers[customer]
  if not c then
    c = customer_parse(redis.call('HGET', KEYS[7], customer))
    sale.customers[customer] = c
  end
  return c
end

local function add_customer_units(sale, customer, n)
  local c = customer_of(sale, customer)
  if c.units + n < 0 then broken('units of a customer would be negative') end
  c.units, c.dirty = c.units + n, true
end

-- held or paying -> released ('r') or expired ('x'): the units are free again.
local function give_back(sale, key, h, state)
  local cart = cart_of(h.lines)
  for _, line in ipairs(cart) do
    add_units(sale, 'live', line.sku, -line.n)
    add_units(sale, 'free', line.sku, line.n)
  end
  add_customer_units(sale, h.customer, -cart.units)
  h.state = state
  record(sale, key, h)
end

-- Gives back at most `max` holds whose time is over, oldest first. Nothing falls due while the clock stands.
local function sweep(sale, max)
  if sale.paused > 0 then return 0 end
  local due = redis.call('ZRANGE', KEYS[5], '-inf', whole(sale.clock), 'BYSCORE', 'LIMIT', 0, max)
  local n = 0
  for _, key in ipairs(due) do
    local h = hold_of(sale, key)
    if not h then broken('a due hold is missing') end
    if h.state == 'h' and h.deadline <= sale.clock then
      give_back(sale, key, h, 'x')
      n = n + 1
    end
  end
  return n
end

local function flat(map, value)
  local out = {}
  for k, v in pairs(map) do
    local x = value(v, k)
    if x then out[#out + 1] = k; out[#out + 1] = x end
  end
  return out
end

-- Stores everything that changed, raises the sequence number, writes one journal entry, tells who waits. Returns the
-- number.
local function commit(sale)
  if #sale.journal == 0 and not sale.dirty then return sale.seq end
  sale.seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
  local free, live = flat(sale.free, whole), flat(sale.live, whole)
  if #free > 0 then redis.call('HSET', KEYS[2], unpack(free)) end
  if #live > 0 then redis.call('HSET', KEYS[3], unpack(live)) end
  local customers = flat(sale.customers, function(c) return c.dirty and c.units .. '|' .. c.keys end)
  if #customers > 0 then redis.call('HSET', KEYS[7], unpack(customers)) end
  local holds, due, due_not, paying, paying_not, changed = {}, {}, {}, {}, {}, {}
  for key, packed in pairs(sale.changed) do
    local h = sale.holds[key]
    holds[#holds + 1] = key; holds[#holds + 1] = packed
    changed[#changed + 1] = key
    if h.state == 'h' then due[#due + 1] = whole(h.deadline); due[#due + 1] = key else due_not[#due_not + 1] = key end
    if h.state == 'p' then paying[#paying + 1] = whole(sale.now); paying[#paying + 1] = key
    elseif h.was_paying then paying_not[#paying_not + 1] = key end
  end
  if #holds > 0 then redis.call('HSET', KEYS[4], unpack(holds)) end
  if #due > 0 then redis.call('ZADD', KEYS[5], unpack(due)) end
  if #due_not > 0 then redis.call('ZREM', KEYS[5], unpack(due_not)) end
  if #paying > 0 then redis.call('ZADD', KEYS[6], unpack(paying)) end
  if #paying_not > 0 then redis.call('ZREM', KEYS[6], unpack(paying_not)) end
  if #sale.journal > 0 then
    local body = table.concat(sale.journal, '\n')
    redis.call('XADD', KEYS[8], '*', 'v', '1', 'e', sale.epoch, 's', sale.seq, 't', whole(sale.now), 'b', body)
  end
  if sale.tell and #changed > 0 then redis.call('PUBLISH', 'fb:changes', table.concat(changed, ',')) end
  return sale.seq
end

-- How every answer begins: the outcome word, Redis' clock, the sequence number, the sale's clock settings.
local function answer(sale, results)
  local out = { 'OK', whole(sale.now), whole(sale.seq), whole(sale.shift), whole(sale.paused) }
  for _, r in ipairs(results) do out[#out + 1] = r end
  return out
end
