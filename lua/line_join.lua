#!lua
-- line_join: a payment takes its place in the line of a gateway.
-- Guarantee: a reference stands in the line once; a repeat answers its place; references keep the order they came in.
-- KEYS  1 line zset, reference -> ticket; 2 gate hash
-- ARGV  references
-- Per reference:
--   position, counted from 1
local results = { 'OK' }
for i = 1, #ARGV do
  if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], redis.call('HINCRBY', KEYS[2], 'ticket', 1), ARGV[i])
  end
  results[#results + 1] = redis.call('ZRANK', KEYS[1], ARGV[i]) + 1
end
return results
