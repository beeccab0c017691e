#!lua
-- permit_take: the right to one gateway call, leased by Redis' clock, over all instances.
-- Guarantee: at most `limit` permits live at once; charges go first come first served; while charges wait, all other
-- calls together have at most a quarter of the permits (at least one), and get it; while none waits they may have all.
-- Among those others whoever a shopper waits for goes first; refunds and walks of the list take turns. After Redis was
-- replaced the gate stays shut for one lease (rule F), since permits of calls that still run may be missing here. A
-- token begins with what it is for ('look:', 'refund:', 'list:', anything else is a charge), and with 'kept.' once its
-- call was given up unanswered.
-- KEYS  1 permits zset, token -> end of lease ms; 2 line zset; 3 urgent zset, token -> end of waiting ms; 4 gate hash
-- ARGV  1 limit; 2 leaseMs; 3 token; 4 kind: 'charge' takes the head of the line, 'urgent' is for a call the caller
--       names; 5 instance: the Redis the caller is connected to; 6 fresh: '1' when this gate never existed before
-- Answer:
--   TAKEN, reference ('' for urgent), leaseMs
--   EMPTY        nobody stands in the line
--   BUSY         all permits are out, or not for this kind now
--   SHUT, ms     the gate opens in so many ms
local URGENT_WAIT_MS, SHARE = 2000, 4
local limit, lease, token, kind = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local stamp = string.format('%d', now)

local gate = redis.call('HMGET', KEYS[4], 'instance', 'opensAt', 'leaseMax', 'wantedAt', 'urgentAt', 'sinceUrgent',
  'lastLow')
local longest = math.max(lease, tonumber(gate[3] or '0'))
if longest > tonumber(gate[3] or '0') then redis.call('HSET', KEYS[4], 'leaseMax', string.format('%d', longest)) end
local opens = tonumber(gate[2] or '0')
if gate[1] ~= ARGV[5] then opens = ARGV[6] == '1' and now or now + lease end
-- What ends later than any lease was given before the clock was set back; a whole lease from now is enough (rule T).
opens = math.min(opens, now + longest)
if gate[1] ~= ARGV[5] or gate[2] ~= string.format('%d', opens) then
  redis.call('HSET', KEYS[4], 'instance', ARGV[5], 'opensAt', string.format('%d', opens))
end
if now < opens then return { 'SHUT', opens - now } end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now + longest), '+inf')) do
  redis.call('ZADD', KEYS[1], now + longest, late)
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '(' .. string.format('%d', now + URGENT_WAIT_MS), '+inf')
if redis.call('ZSCORE', KEYS[1], token) then return { 'BUSY' } end

local function use_of(name) return string.match(name, '^kept%.(%a+):') or string.match(name, '^(%a+):') or '' end
local others = { look = true, refund = true, list = true }
local permits = redis.call('ZRANGE', KEYS[1], 0, -1)
local out, others_out = #permits, 0
for _, name in ipairs(permits) do if others[use_of(name)] then others_out = others_out + 1 end end

-- Charges wait while one is in the line and a worker has asked for it within a lease; without a worker none is starved.
local queued, wanted = redis.call('ZCARD', KEYS[2]) > 0, tonumber(gate[4] or '0')
local share = limit
if queued and (kind == 'charge' or (wanted <= now and now - wanted < lease)) then
  share = math.max(1, math.floor(limit / SHARE))
  -- A quarter of fewer than four permits is one of them for a quarter of the time.
  local rested, had = now - tonumber(gate[5] or '0'), tonumber(gate[6] or '0')
  if limit < SHARE and had < SHARE - 1 and rested >= 0 and rested < URGENT_WAIT_MS then share = 0 end
end

if kind == 'urgent' then
  local function rank(name)
    local use = use_of(name)
    return (use == 'refund' or use == 'list') and (use == gate[7] and 2 or 1) or 0
  end
  local before, waiting = 0, redis.call('ZRANGE', KEYS[3], 0, -1)
  for _, name in ipairs(waiting) do if rank(name) < rank(token) then before = before + 1 end end
  if before >= math.min(limit - out, share - others_out) then
    redis.call('ZADD', KEYS[3], now + URGENT_WAIT_MS, token)
    return { 'BUSY' }
  end
  redis.call('ZREM', KEYS[3], token)
  redis.call('HSET', KEYS[4], 'urgentAt', stamp, 'sinceUrgent', 0)
  if rank(token) > 0 then redis.call('HSET', KEYS[4], 'lastLow', use_of(token)) end
  redis.call('ZADD', KEYS[1], now + lease, token)
  return { 'TAKEN', '', lease }
end
if queued and (wanted > now or now - wanted > lease / 4) then redis.call('HSET', KEYS[4], 'wantedAt', stamp) end
if out + math.max(0, math.min(redis.call('ZCARD', KEYS[3]), share - others_out)) >= limit then return { 'BUSY' } end
local head = redis.call('ZPOPMIN', KEYS[2])
if not head[1] then return { 'EMPTY' } end
redis.call('HINCRBY', KEYS[4], 'sinceUrgent', 1)
redis.call('ZADD', KEYS[1], now + lease, token)
return { 'TAKEN', head[1], lease }
