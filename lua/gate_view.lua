#!lua flags=no-writes
-- gate_view: how many permits are out, how long the line is, and places in it.
-- Guarantee: one instant.
-- KEYS  1 permits zset; 2 line zset; 3 gate hash
-- ARGV  references
-- Answer:
--   permits out, line length, callMs, opensInMs, then for each reference its place from 1, 0 when it is not in the line
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local gate = redis.call('HMGET', KEYS[3], 'callMs', 'opensAt')
local results = {
  'OK', redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%d', now), '+inf'), redis.call('ZCARD', KEYS[2]),
  tonumber(gate[1] or '0'), math.max(0, tonumber(gate[2] or '0') - now),
}
for i = 1, #ARGV do
  local rank = redis.call('ZRANK', KEYS[2], ARGV[i])
  results[#results + 1] = rank and rank + 1 or 0
end
return results
