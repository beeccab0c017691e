#!lua
-- permit_take: the right to one gateway call, leased by Redis' clock, over all instances.
-- Guarantee: at most `limit` permits live at once; look-ups, cancels and refunds go before charges; charges go first
-- come first served; after Redis was replaced the gate stays shut for one lease (rule F), since permits of calls that
-- still run may be missing here.
-- KEYS  1 permits zset, token -> end of lease ms; 2 line zset; 3 urgent zset, token -> end of waiting ms; 4 gate hash
-- ARGV  1 limit; 2 leaseMs; 3 token; 4 kind: 'charge' takes the head of the line, 'urgent' is for a call the caller
--       names; 5 instance: the Redis the caller is connected to; 6 fresh: '1' when this gate never existed before
-- Answer:
--   TAKEN, reference ('' for urgent), leaseMs
--   EMPTY        nobody stands in the line
--   BUSY         all permits are out, or wanted by urgent calls
--   SHUT, ms     the gate opens in so many ms
local URGENT_WAIT_MS = 2000
local limit, lease, token, kind = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

local gate = redis.call('HMGET', KEYS[4], 'instance', 'opensAt', 'leaseMax')
local longest = math.max(lease, tonumber(gate[3] or '0'))
if longest > tonumber(gate[3] or '0') then redis.call('HSET', KEYS[4], 'leaseMax', string.format('%d', longest)) end
local opens = tonumber(gate[2] or '0')
if gate[1] ~= ARGV[5] then opens = ARGV[6] == '1' and now or now + lease end
-- What ends later than any lease was given before the clock was set back (rule T). A whole lease from now is enough for
-- every call that may still run.
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
local out = redis.call('ZCARD', KEYS[1])
if kind == 'urgent' then
  if out >= limit then
    redis.call('ZADD', KEYS[3], now + URGENT_WAIT_MS, token)
    return { 'BUSY' }
  end
  redis.call('ZREM', KEYS[3], token)
  redis.call('ZADD', KEYS[1], now + lease, token)
  return { 'TAKEN', '', lease }
end
if out + redis.call('ZCARD', KEYS[3]) >= limit then return { 'BUSY' } end
local head = redis.call('ZPOPMIN', KEYS[2])
if not head[1] then return { 'EMPTY' } end
redis.call('ZADD', KEYS[1], now + lease, token)
return { 'TAKEN', head[1], lease }
