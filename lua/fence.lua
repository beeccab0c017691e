#!lua flags=allow-oom
-- fence: stops every transition of a sale in this Redis, so that the journal can be emptied before a rebuild.
-- Guarantee: after FENCED no transition of the sale changes anything until an install of a newer epoch.
-- KEYS  1 sale hash
-- ARGV  1 epoch as Postgres has it
-- Answer:
--   FENCED|epoch|seq   epoch and seq are '' where this Redis has no such sale
--   NEWER|epoch|seq    this Redis is of a later epoch than Postgres: nothing done
local s = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if s[1] and tonumber(s[1]) > tonumber(ARGV[1]) then return { 'NEWER|' .. s[1] .. '|' .. (s[2] or '') } end
if s[1] then redis.call('HSET', KEYS[1], 'fenced', '1') end
return { 'FENCED|' .. (s[1] or '') .. '|' .. (s[2] or '') }
