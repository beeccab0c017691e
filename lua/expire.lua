#!lua flags=allow-oom
-- expire: held -> expired for holds whose time is over, oldest first, a bounded batch.
-- Guarantee: each hold is given back once; paying holds have no deadline here and are never swept.
-- KEYS  the sale's eight (prelude)
-- ARGV  1-3 (prelude); 4 max holds
-- Answer:
--   expired         how many were given back; `max` means there may be more
local book, refusal = open_book(true)
if not book then return refusal end
book.tell = true
local n = sweep(book, digits(ARGV[4], 'max'))
commit(book)
return answer(book, { string.format('%d', n) })
