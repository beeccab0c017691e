#!lua flags=allow-oom
-- configure: the sale's settings as Postgres has them.
-- Guarantee: an older version never overwrites a newer one.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 version; then field, value pairs of the sale hash
-- Answer:
--   APPLIED | OLD
local sale, refusal = open_sale(true)
if not sale then return refusal end
local have = digits(redis.call('HGET', KEYS[1], 'version') or '0', 'version')
if digits(ARGV[4], 'version') <= have then return answer(sale, { 'OLD' }) end
local fields = { 'version', ARGV[4] }
for i = 5, #ARGV, 2 do
  digits(ARGV[i + 1], ARGV[i])
  fields[#fields + 1] = ARGV[i]; fields[#fields + 1] = ARGV[i + 1]
end
redis.call('HSET', KEYS[1], unpack(fields))
sale.dirty = true
commit(sale)
return answer(sale, { 'APPLIED' })
