#!lua flags=allow-oom
-- permit_give: gives a permit back when its call has ended, whatever was answered. One whose call was given up
-- unanswered may still be running at the gateway: it is kept, under a name that says so, until its lease ends.
-- Guarantee: giving back twice, or after the lease, changes nothing for others; keeping changes neither number nor end
-- of the permits out.
-- KEYS  1 permits zset; 2 urgent zset; 3 gate hash
-- ARGV  1 token; 2 callMs, how long the call took, '' when none was made; 3 kept: '1' when no answer came
-- Answer:
--   OK
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ends and ARGV[3] == '1' then redis.call('ZADD', KEYS[1], ends, 'kept.' .. ARGV[1]) end
if ARGV[2] ~= '' then
  local before = tonumber(redis.call('HGET', KEYS[3], 'callMs') or ARGV[2])
  redis.call('HSET', KEYS[3], 'callMs', string.format('%d', before * 0.9 + tonumber(ARGV[2]) * 0.1))
end
return { 'OK' }
