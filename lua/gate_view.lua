#!lua flags=no-writes
-- gate_view: figures of a gate, and places in its line.
-- Guarantee: one instant.
-- KEYS  1 permits zset; 2 line zset; 3 gate hash
-- ARGV  references
-- Answer:
--   permits out, line length, callMs, opensInMs; of the permits out those of charges, look-ups, refunds and lists that
--   run, and those kept after a lost answer; then for each reference its place from 1, 0 when it is not in the line
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local gate = redis.call('HMGET', KEYS[3], 'callMs', 'opensAt')
local permits = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now), '+inf')
local uses = { charge = 0, look = 0, refund = 0, list = 0, kept = 0 }
for _, name in ipairs(permits) do
  local use = string.match(name, '^kept%.') and 'kept' or string.match(name, '^(%a+):') or 'charge'
  if not uses[use] then use = 'charge' end
  uses[use] = uses[use] + 1
end
local results = {
  'OK', #permits, redis.call('ZCARD', KEYS[2]), tonumber(gate[1] or '0'), math.max(0, tonumber(gate[2] or '0') - now),
  uses.charge, uses.look, uses.refund, uses.list, uses.kept,
}
for i = 1, #ARGV do
  local rank = redis.call('ZRANK', KEYS[2], ARGV[i])
  results[#results + 1] = rank and rank + 1 or 0
end
return results
