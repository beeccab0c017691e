/**
 * persist: the journal to Postgres, in batches. Mirror rows are one transaction; orders, their lines and their mails
 * are another beside it; only after both are the entries acknowledged and deleted. Everything is insert-once or
 * forward-only, so a repeat changes nothing.
 */

import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { NewerEntry, PostgresOlder, Unavailable } from "../domain/errors.ts";
import type { Sale } from "../domain/sale.ts";
import { withoutGuilty } from "../stores/coalesce.ts";
import { saleKeys } from "../stores/keys.ts";
import type { Tx } from "../stores/postgres.ts";
import { storable } from "../stores/refused.ts";
import { stopSelling } from "../stores/stop-selling.ts";
import { byHold, type JournalEntry, lineOf, parseEntry, type RawEntry } from "./journal.ts";

type Needs = Pick<Context, "db" | "log" | "marks" | "metrics" | "redis" | "sales" | "scripts" | "work">;

const GROUP = "persist";
/** Entries per read; one entry carries up to 128 transitions. */
const ENTRIES_MAX = 100;
/** An entry that another consumer read and did not finish is taken over after this. */
const RECLAIM_IDLE_MS = 5_000;
const ERROR_LENGTH_MAX = 2_000;

/**
 * Mirrors the holds of one sale. Rows only of the present epoch: a rebuild has already counted what came before, and an
 * entry that arrives late must not bring a hold back. In order of key (rule W). `mark`: the position that Postgres is
 * known to have had; throws PostgresOlder when it has less (rule Y).
 */
export async function mirrorHolds(tx: Tx, saleId: string, entries: JournalEntry[], mark = 0): Promise<number> {
  // The last state of each hold, and since when it is held from the first. A plain literal: spread ones took 5 us a
  // row.
  const mirror = new Map<string, { held_ms: number }>();
  for (const e of entries) {
    for (const t of e.transitions) {
      const row = {
        key: t.key,
        customer_id: t.customerId,
        state: t.letter,
        lines: t.lines,
        reference: t.reference,
        deadline_ms: t.deadlineMs,
        epoch: e.epoch,
        seq: e.seq,
        at_ms: e.atMs,
        held_ms: mirror.get(t.key)?.held_ms ?? e.atMs,
      };
      mirror.set(t.key, row);
    }
  }
  await tx.execute(sql`
    insert into reservations (sale_id, key, customer_id, state, lines, reference, deadline_ms, epoch, seq,
           held_at, changed_at)
    select ${saleId}, r.key, r.customer_id, r.state, r.lines, r.reference, r.deadline_ms, r.epoch, r.seq,
           to_timestamp(r.held_ms / 1000.0), to_timestamp(r.at_ms / 1000.0)
    from json_to_recordset(${JSON.stringify([...mirror.values()])}::json) as r(key text, customer_id text, state text,
         lines text, reference text, deadline_ms bigint, epoch int, seq bigint, at_ms bigint, held_ms bigint)
    where r.epoch >= (select epoch from epochs where sale_id = ${saleId})
    order by r.key
    on conflict (sale_id, key) do update set state = excluded.state, reference = excluded.reference,
           deadline_ms = excluded.deadline_ms, epoch = excluded.epoch, seq = excluded.seq,
           changed_at = excluded.changed_at
    where (excluded.epoch, excluded.seq) > (reservations.epoch, reservations.seq)`);
  const seq = Math.max(...entries.map((e) => e.seq));
  const moved = await tx.execute(sql`
    update journal_positions set seq = greatest(seq, ${seq}) where sale_id = ${saleId} and seq >= ${mark}
      and not exists (select 1 from epochs where sale_id = ${saleId} and stopped_why is not null) returning seq`);
  if (moved.length === 0)
    throw new PostgresOlder(`Postgres has less of the journal of ${saleId} than up to ${mark}, which it had`);
  return seq;
}

/**
 * A hold is confirmed only after its capture was committed: a payment that is not is one that this Postgres has lost.
 */
async function assertCaptured(tx: Tx, references: string[]): Promise<void> {
  const [row] = await tx.execute<{ known: number }>(sql`
    select count(*)::int as known from payments
    where reference in (select json_array_elements_text(${JSON.stringify(references)}::json))
      and state in ('captured', 'refunding', 'refunded')`);
  if ((row?.known ?? 0) < references.length)
    throw new PostgresOlder("Redis has confirmed holds whose captured payments Postgres does not have");
}

/** The orders that a journal confirms; throws PostgresOlder where their payments are missing. */
export async function recordConfirmed(tx: Tx, entries: JournalEntry[]): Promise<number> {
  const references = confirmedIn(entries);
  const recorded = await recordOrders(tx, references);
  if (recorded < references.length) await assertCaptured(tx, references);
  return recorded;
}

/** The payments of entries that confirm, of any epoch: an order is owed whatever became of Redis. */
export const confirmedIn = (entries: JournalEntry[]): string[] => [
  ...new Set(entries.flatMap((e) => e.transitions.filter((t) => t.letter === "c").map((t) => t.reference))),
];

/**
 * Records the orders of captured payments from their snapshots, once per reservation, with lines and mail in the same
 * transaction. Payments in any other state are passed over: an order without a charge is never written (P8).
 */
export async function recordOrders(tx: Tx, references: string[]): Promise<number> {
  if (references.length === 0) return 0;
  const [row] = await tx.execute<{ recorded: number }>(sql`
    with recorded as (
      insert into orders (id, reservation_id, reference, sale_id, customer_id, amount, currency, gateway, charge_id,
        contact, ship_to, confirmed_at)
      select 'ord_' || reference, reservation_id, reference, sale_id, customer_id, amount, currency, gateway, charge_id,
        contact, ship_to, coalesce(captured_at, now())
      from payments
      where reference in (select json_array_elements_text(${JSON.stringify(references)}::json)) and state = 'captured'
      order by captured_at, reference
      on conflict do nothing returning id, sale_id, reference
    ), paid as materialized (
      select o.id, o.sale_id, p.lines, p.language from recorded o join payments p using (reference)
    ), lines as (
      insert into order_lines (order_id, sku, name, quantity, unit_price)
      select p.id, l.sku, l.name, l.quantity, l."unitPrice"
      from paid p, jsonb_to_recordset(p.lines) as l(sku text, name text, quantity int, "unitPrice" bigint)
    ), mails as (
      insert into outbox (order_id, kind, sale_id, language)
      select id, 'confirmation', sale_id, language from paid
    )
    select count(*)::int as recorded from recorded`);
  return row?.recorded ?? 0;
}

async function write(ctx: Needs, sale: Sale, entries: JournalEntry[]): Promise<void> {
  if (sale.stoppedWhy !== null) throw new Unavailable(`${sale.id} stands`);
  const mark = await ctx.marks.position(sale.id);
  const recorded = await around("persist.write", async () => {
    const mirrored = ctx.db.transaction((tx) => mirrorHolds(tx, sale.id, entries, mark));
    const confirms = confirmedIn(entries).length > 0;
    const orders = confirms ? ctx.db.transaction((tx) => recordConfirmed(tx, entries)) : 0;
    await Promise.allSettled([mirrored, orders]); // neither goes on behind whoever tries again
    const seq = await mirrored;
    const written = await orders;
    await ctx.marks.reached(sale.id, seq);
    return written;
  }).catch(async (error) => {
    if (!(error instanceof PostgresOlder)) throw error;
    await stopSelling(ctx, [sale.id], error.message);
    throw new Unavailable(error.message);
  });
  ctx.metrics.persisted.inc(entries.length);
  if (recorded > 0) {
    ctx.metrics.orders.inc(recorded);
    ctx.work.emit("outbox");
  }
}

/**
 * Both or neither: an entry that was acknowledged and not deleted would stay for ever, since nobody is given it again.
 */
async function forget(ctx: Needs, journal: string, ids: string[]): Promise<void> {
  const replies = await around("persist.forget", () =>
    ctx.redis.client
      .multi()
      .xack(journal, GROUP, ...ids)
      .xdel(journal, ...ids)
      .exec(),
  );
  for (const [error] of replies ?? []) if (error) throw error;
}

/** What Postgres will never take of an entry is kept for a person; the rest of it, and the others, flow. */
async function setAside(ctx: Needs, sale: Sale, id: string, body: unknown, error: unknown): Promise<void> {
  ctx.log.error({ err: error, saleId: sale.id, entry: id }, "journal entry set aside");
  // The error of a refused statement repeats what was refused.
  const why = storable(String(error), ERROR_LENGTH_MAX);
  await ctx.db.execute(
    sql`insert into dead_letters (sale_id, entry_id, body, error)
      values (${sale.id}, ${id}, ${JSON.stringify(body)}, ${why}) on conflict do nothing`,
  );
  ctx.metrics.deadLetters.inc();
}

/**
 * Writes what Postgres takes, and sets the rest aside by entry. Throws what is unknown: then all are read again after
 * the idle time.
 */
async function writeApart(ctx: Needs, sale: Sale, entries: JournalEntry[]): Promise<void> {
  const aside = new Map<string, { lines: string[]; error: unknown }>();
  const keep = (id: string, lines: string[], error: unknown) =>
    aside.set(id, { lines: [...(aside.get(id)?.lines ?? []), ...lines], error });
  const writeSome = (some: JournalEntry[]) => write(ctx, sale, some);
  for (const e of entries) if (e.unread?.length) keep(e.id, e.unread, new Error("a journal line cannot be read"));
  const written = entries.filter((e) => e.transitions.length > 0);
  await withoutGuilty(writeSome, written, (entry) =>
    withoutGuilty(writeSome, byHold(entry), (part, error) => keep(entry.id, part.transitions.map(lineOf), error)),
  );
  for (const [id, { lines, error }] of aside) await setAside(ctx, sale, id, { lines }, error);
}

async function work(ctx: Needs, sale: Sale, raw: RawEntry[]): Promise<number> {
  const journal = saleKeys(sale.id).journal;
  const readable: JournalEntry[] = [];
  const done: string[] = [];
  for (const r of raw) {
    try {
      // Without fields: deleted before it could be read again.
      if (r[1] !== null) readable.push(parseEntry(r));
      done.push(r[0]);
    } catch (error) {
      if (error instanceof NewerEntry) {
        ctx.log.warn({ saleId: sale.id, entry: r[0] }, error.message);
        continue;
      }
      await setAside(ctx, sale, r[0], r[1], error);
      done.push(r[0]);
    }
  }
  await writeApart(ctx, sale, readable);
  if (done.length > 0) await forget(ctx, journal, done);
  return done.length;
}

export function persistStage(ctx: Needs, consumer: string) {
  /** Where the search for entries of dead consumers stands, by sale. */
  const reclaims = new Map<string, { at: number; from: string }>();

  /** One batch of one sale; answers how many entries were finished. */
  async function runOnce(sale: Sale): Promise<number> {
    const journal = saleKeys(sale.id).journal;
    const client = ctx.redis.client;
    const reclaim = reclaims.get(sale.id) ?? { at: 0, from: "0-0" };
    reclaims.set(sale.id, reclaim);
    if (Date.now() - reclaim.at > RECLAIM_IDLE_MS / 2) {
      reclaim.at = Date.now();
      const [next, raw] = (await withGroup(ctx, journal, () =>
        client.xautoclaim(journal, GROUP, consumer, RECLAIM_IDLE_MS, reclaim.from, "COUNT", ENTRIES_MAX),
      )) as [string, RawEntry[]];
      reclaim.from = next;
      if (raw.length > 0) return work(ctx, sale, raw);
    }
    const read = (await withGroup(ctx, journal, () =>
      client.xreadgroup("GROUP", GROUP, consumer, "COUNT", ENTRIES_MAX, "STREAMS", journal, ">"),
    )) as Array<[string, RawEntry[]]> | null;
    const raw = read?.[0]?.[1] ?? [];
    return raw.length === 0 ? 0 : around("persist.work", () => work(ctx, sale, raw));
  }

  /**
   * Works off the journal of a sale: a full batch is followed by the next at once. Answers how many entries were
   * finished.
   */
  return async function persist(sale: Sale, signal?: AbortSignal): Promise<number> {
    for (let total = 0; ; ) {
      const finished = await runOnce(sale);
      total += finished;
      if (finished < ENTRIES_MAX || signal?.aborted) return total;
    }
  };
}

/** Makes the group from the stream's beginning when Redis has lost it. */
async function withGroup<T>(ctx: Needs, journal: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (!String(error).includes("NOGROUP")) throw error;
    await ctx.redis.client.xgroup("CREATE", journal, GROUP, "0", "MKSTREAM").catch((e) => {
      if (!String(e).includes("BUSYGROUP")) throw e;
    });
    return call();
  }
}
