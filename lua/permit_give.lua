#!lua flags=allow-oom
-- permit_give: gives a permit back, after a definite answer only; after a timeout it lapses with its lease.
-- Guarantee: giving back twice, or after the lease, changes nothing for others.
-- KEYS  1 permits zset; 2 urgent zset; 3 gate hash
-- ARGV  1 token; 2 callMs, how long the call took, '' when none was made
-- Answer:
--   OK
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] ~= '' then
  local before = tonumber(redis.call('HGET', KEYS[3], 'callMs') or ARGV[2])
  redis.call('HSET', KEYS[3], 'callMs', string.format('%d', before * 0.9 + tonumber(ARGV[2]) * 0.1))
end
return { 'OK' }
