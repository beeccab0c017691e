#!lua flags=allow-oom
-- fence: stops every transition of a sale in this Redis, so that the journal can be emptied before a rebuild (rule Q).
-- Guarantee: after FENCED nothing changes the sale, and no image of this epoch or an earlier one is installed, until a
-- later one is. The mark is also set where there is no such sale yet: else the image of a slower rebuild would go live
-- there, grant holds, and be replaced by ours, which lacks them.
-- Whoever fenced is left alone until its lease ends. The lease only keeps rebuilds from overtaking each other for ever;
-- nothing else depends on it.
-- KEYS  1 sale hash
-- ARGV  1 epoch as Postgres has it; 2 who fences; 3 lease, ms
-- Answer:
--   FENCED|epoch|seq   epoch and seq are '' where this Redis has no such sale
--   BUSY|epoch|seq     somebody else has fenced it and is rebuilding: nothing done
--   NEWER|epoch|seq    this Redis is of a later epoch than Postgres: nothing done
local s = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'fenced', 'fencedBy', 'fencedUntil')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function answer(outcome) return { outcome .. '|' .. (s[1] or '') .. '|' .. (s[2] or '') } end

if s[1] and tonumber(s[1]) > tonumber(ARGV[1]) then return answer('NEWER') end
local lease, left = tonumber(ARGV[3]), tonumber(s[5] or '0') - now
-- More than a whole lease left means that the clock was set back: then the lease is over (rule T).
if s[3] and s[4] ~= ARGV[2] and left > 0 and left <= lease then return answer('BUSY') end
local mark = math.max(tonumber(s[3] or '0'), tonumber(ARGV[1]))
local ends = string.format('%d', now + lease)
redis.call('HSET', KEYS[1], 'fenced', string.format('%d', mark), 'fencedBy', ARGV[2], 'fencedUntil', ends)
return answer('FENCED')
