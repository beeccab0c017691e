#!lua flags=allow-oom
-- install: the sale as Postgres knows it replaces whatever this Redis has (rules I, J and K).
-- Guarantee: refused unless the epoch is newer than the one here and than the one that was fenced last (else another
-- rebuild has begun since: rule Q), and unless this is the recorded instance; otherwise all or nothing.
-- KEYS  the sale's eight (prelude), the journal is left as it is; 9 moves hash
-- ARGV  1 epoch; 2 seq; 3 run_id of the recorded instance, of a cluster all of them; 4 settings 'field value', a line
--       each; 5 free 'sku units'; 6 holds 'key|hold'; 7 customers 'customer units|keys'; 8 moves already counted, as
--       'id delta'
-- Answer:
--   INSTALLED | NOT_NEWER | OTHER_INSTANCE
local REFUSAL_LEASE_MS = 250
local KEY_AT = { sale = 1, free = 2, live = 3, holds = 4, due = 5, paying = 6, customers = 7, moves = 9 }
for _, epoch in ipairs(redis.call('HMGET', KEYS[KEY_AT.sale], 'epoch', 'fenced')) do
  if epoch and tonumber(epoch) >= tonumber(ARGV[1]) then return { 'NOT_NEWER' } end
end
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if not run_id or not string.find(ARGV[3], run_id, 1, true) then return { 'OTHER_INSTANCE' } end

for _, at in pairs(KEY_AT) do redis.call('DEL', KEYS[at]) end
local live, time = {}, redis.call('TIME')
local now = string.format('%d', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
for key, value in string.gmatch(ARGV[4], '(%S+) (%S+)') do redis.call('HSET', KEYS[1], key, value) end
for sku, units in string.gmatch(ARGV[5], '(%S+) (%d+)') do
  redis.call('HSET', KEYS[2], sku, units)
  live[sku] = 0
end
for key, packed in string.gmatch(ARGV[6], '([^|\n]+)|([^\n]+)') do
  redis.call('HSET', KEYS[4], key, packed)
  local state, deadline, lines = string.match(packed, '^(%a)|(%d+)|[^|]*|([^|]*)|')
  if state == 'h' then redis.call('ZADD', KEYS[5], deadline, key) end
  if state == 'p' then redis.call('ZADD', KEYS[6], now, key) end
  if state == 'h' or state == 'p' then
    for sku, n in string.gmatch(lines, '([^:,]+):(%d+)') do live[sku] = live[sku] + tonumber(n) end
  end
end
for sku, units in pairs(live) do redis.call('HSET', KEYS[3], sku, string.format('%d', units)) end
for customer, packed in string.gmatch(ARGV[7], '(%S+) (%S+)') do redis.call('HSET', KEYS[7], customer, packed) end
for id, delta in string.gmatch(ARGV[8], '(%S+) (%S+)') do redis.call('HSET', KEYS[9], id, delta) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', ARGV[2])
-- Processes may still refuse any item under refusal leases of the epoch before; what Redis knew of those leases is
-- gone.
if ARGV[1] ~= '1' then
  local lapses = string.format('%d', tonumber(now) + REFUSAL_LEASE_MS)
  for sku in pairs(live) do redis.call('HSET', KEYS[1], 'out:' .. sku, lapses) end
end
return { 'INSTALLED' }
