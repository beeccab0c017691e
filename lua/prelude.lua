-- Put in by the loader after the first line of every transition of a sale.
--
-- A script opens the *book* of a sale, changes it in memory, and commits once. Nothing is written before `commit`, so an
-- error on the way (a broken invariant, a bad argument) leaves Redis as it was: Lua in Redis does not roll back.
--
-- KEYS, the same eight for every transition, one slot:
--   1 sale hash       epoch, seq, settings, clock, out:<sku> until when a process may still show the item as out
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
-- The sale's clock is Redis' clock less the time the sale stood still (`shift`), so pausing payments or extending all
-- holds moves one number instead of every deadline.

local KEYS_OF_CUSTOMER_MAX = 50
local BOARD_LEASE_MS_MAX = 1000

-- The book cannot be right: the sale is rebuilt. A fault of the request alone: it is refused, and those it came with are asked again.
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

-- Whole numbers as text: tostring would write large ones as 1.7e+12. A call writes the same few instants again and again.
local texts = {}
local function whole(n)
  local text = texts[n]
  if not text then
    text = string.format('%d', n)
    texts[n] = text
  end
  return text
end

local function hold_pack(h) return h.state .. '|' .. whole(h.deadline) .. '|' .. h.ref .. '|' .. h.lines .. '|' .. h.customer end

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

-- 'sku:quantity,sku:quantity' as { units, { sku, quantity }, ... }. In a rush most carts are alike, so each is read once a call.
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

-- The book, or nil and the refusal to answer.
local function open_book(writes)
  local s = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'fenced', 'shift', 'pausedAt', 'opensAt', 'closesAt', 'holdMs', 'limit', 'reserving')
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
local function units_of(book, which, sku)
  local n = book[which][sku]
  if not n then
    n = redis.call('HGET', which == 'free' and KEYS[2] or KEYS[3], sku)
    if not n then return nil end
    n = digits(n, which .. ' of an item')
    book[which][sku] = n
  end
  return n
end

-- Units that may be granted now: none while some process still shows the item as out (board.lua).
local function grantable(book, sku)
  if book.told_out[sku] == nil then
    local ends = tonumber(redis.call('HGET', KEYS[1], 'out:' .. sku) or '0')
    -- One that ends later than any lease can was given before the clock was set back.
    book.told_out[sku] = ends > book.now and ends <= book.now + BOARD_LEASE_MS_MAX and ends or false
  end
  local have = units_of(book, 'free', sku)
  if not have then broken('free of an item is missing') end
  return book.told_out[sku] and 0 or have
end

-- Units that may come back: live ones, and those that are free but shown as out (SOLD_OUT would send a shopper away who gets one in a moment);
-- for the latter also when, on the sale's clock.
local function returning(book, sku)
  local live, hidden = units_of(book, 'live', sku) or 0, units_of(book, 'free', sku) - grantable(book, sku)
  if hidden == 0 then return live end
  return live + hidden, book.clock + book.told_out[sku] - book.now
end

local function add_units(book, which, sku, n)
  local have = units_of(book, which, sku)
  if not have then broken(which .. ' of an item is missing') end
  if have + n < 0 then broken(which .. ' of an item would be negative') end
  book[which][sku] = have + n
  book.dirty = true
end

-- Reads holds and customers of many requests at once; false stands for one that is not there.
local function read_ahead(book, keys, customers)
  for i, packed in ipairs(redis.call('HMGET', KEYS[4], unpack(keys))) do book.holds[keys[i]] = packed and hold_parse(packed) end
  for i, packed in ipairs(redis.call('HMGET', KEYS[7], unpack(customers))) do book.customers[customers[i]] = customer_parse(packed) end
end

local function hold_of(book, key)
  local h = book.holds[key]
  if h == nil then
    local packed = redis.call('HGET', KEYS[4], key)
    h = packed and hold_parse(packed)
    book.holds[key] = h
  end
  return h or nil
end

-- Writes down that the hold is as it is now; `commit` stores it and moves it between the clocks.
local function record(book, key, h)
  local packed = hold_pack(h)
  -- One line of the journal, which Postgres must be able to take.
  if string.find(packed, '%c') then unfit('a hold with a control character') end
  book.holds[key] = h
  book.changed[key] = packed
  book.journal[#book.journal + 1] = key .. '|' .. packed
end

local function customer_of(book, customer)
  local c = book.customers[customer]
  if not c then
    c = customer_parse(redis.call('HGET', KEYS[7], customer))
    book.customers[customer] = c
  end
  return c
end

local function add_customer_units(book, customer, n)
  local c = customer_of(book, customer)
  if c.units + n < 0 then broken('units of a customer would be negative') end
  c.units, c.dirty = c.units + n, true
end

-- held or paying -> released ('r') or expired ('x'): the units are free again.
local function give_back(book, key, h, state)
  local cart = cart_of(h.lines)
  for _, line in ipairs(cart) do
    add_units(book, 'live', line.sku, -line.n)
    add_units(book, 'free', line.sku, line.n)
  end
  add_customer_units(book, h.customer, -cart.units)
  h.state = state
  record(book, key, h)
end

-- Gives back at most `max` holds whose time is over, oldest first. Nothing falls due while the clock stands.
local function sweep(book, max)
  if book.paused > 0 then return 0 end
  local due = redis.call('ZRANGE', KEYS[5], '-inf', whole(book.clock), 'BYSCORE', 'LIMIT', 0, max)
  local n = 0
  for _, key in ipairs(due) do
    local h = hold_of(book, key)
    if not h then broken('a due hold is missing') end
    if h.state == 'h' and h.deadline <= book.clock then
      give_back(book, key, h, 'x')
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

-- Stores everything that changed, raises the sequence number, writes one journal entry, tells who waits. Returns the number.
local function commit(book)
  if #book.journal == 0 and not book.dirty then return book.seq end
  book.seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
  local free, live = flat(book.free, whole), flat(book.live, whole)
  if #free > 0 then redis.call('HSET', KEYS[2], unpack(free)) end
  if #live > 0 then redis.call('HSET', KEYS[3], unpack(live)) end
  local customers = flat(book.customers, function(c) return c.dirty and c.units .. '|' .. c.keys end)
  if #customers > 0 then redis.call('HSET', KEYS[7], unpack(customers)) end
  local holds, due, due_not, paying, paying_not, changed = {}, {}, {}, {}, {}, {}
  for key, packed in pairs(book.changed) do
    local h = book.holds[key]
    holds[#holds + 1] = key; holds[#holds + 1] = packed
    changed[#changed + 1] = key
    if h.state == 'h' then due[#due + 1] = whole(h.deadline); due[#due + 1] = key else due_not[#due_not + 1] = key end
    if h.state == 'p' then paying[#paying + 1] = whole(book.now); paying[#paying + 1] = key elseif h.was_paying then paying_not[#paying_not + 1] = key end
  end
  if #holds > 0 then redis.call('HSET', KEYS[4], unpack(holds)) end
  if #due > 0 then redis.call('ZADD', KEYS[5], unpack(due)) end
  if #due_not > 0 then redis.call('ZREM', KEYS[5], unpack(due_not)) end
  if #paying > 0 then redis.call('ZADD', KEYS[6], unpack(paying)) end
  if #paying_not > 0 then redis.call('ZREM', KEYS[6], unpack(paying_not)) end
  if #book.journal > 0 then
    redis.call('XADD', KEYS[8], '*', 'v', '1', 'e', book.epoch, 's', book.seq, 't', whole(book.now), 'b', table.concat(book.journal, '\n'))
  end
  if book.tell and #changed > 0 then redis.call('PUBLISH', 'fb:changes', table.concat(changed, ',')) end
  return book.seq
end

-- How every answer begins: the outcome word, Redis' clock, the sequence number, the sale's clock settings.
local function answer(book, results)
  local out = { 'OK', whole(book.now), whole(book.seq), whole(book.shift), whole(book.paused) }
  for _, r in ipairs(results) do out[#out + 1] = r end
  return out
end
