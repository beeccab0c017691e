/**
 * rebuild: Redis from Postgres, whenever the Redis of a sale is missing, older, rolled back, another instance, or
 * broken. Safe to run at any time, by any number of processes (rules F, G, I, J, K, Q and S).
 *
 *   fence    nothing changes the sale any more in the Redis we see, and no earlier rebuild can be installed there
 *   drain    what its journal still holds goes to Postgres: after a plain restart nothing at all is lost
 *   raise    one Postgres transaction: the epoch is raised, the instance recorded, the snapshot taken
 *   install  one script, refused unless its epoch is newer and the instance the recorded one
 */

import { and, eq, inArray, notInArray, sql } from "drizzle-orm";
import { nanoid } from "nanoid";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { PostgresOlder, RedisNewer, Unavailable } from "../domain/errors.ts";
import type { Hold } from "../domain/hold.ts";
import { PAYMENT_ENDED_UNPAID, RESERVATION_LETTERS, type ReservationLetter } from "../domain/lifecycle.ts";
import { byHold, type JournalEntry, parseEntry } from "../stages/journal.ts";
import { mirrorHolds, recordConfirmed } from "../stages/persist.ts";
import { withoutGuilty } from "../stores/coalesce.ts";
import { saleKeys } from "../stores/keys.ts";
import type { Tx } from "../stores/postgres.ts";
import type { Instance } from "../stores/redis.ts";
import {
  epochs,
  items,
  journalPositions,
  orders,
  payments,
  reservations,
  sales,
  stockMoves,
} from "../stores/schema.ts";
import type { InstallImage } from "../stores/scripts.ts";
import { stopSelling } from "../stores/stop-selling.ts";
import { checkRestored } from "./restored.ts";

const DRAIN_ENTRIES = 200;
/**
 * How long a rebuild is left alone by others after its last sign of life. It is safe to overtake it (fence.lua), but
 * two would do so in turn.
 */
const LEASE_MS = 3_000;
const TRY_AGAIN_MS = 200;
const WAIT_MS_MAX = 10_000;
const CUSTOMER_KEYS_MAX = 50;
const READINGS_MAX = 50;
/** Postgres takes 65,535 parameters a statement. */
const MIRROR_ROWS_MAX = 1_000;

export type Rebuilt = { outcome: "REBUILT"; epoch: number; holds: number; dropped: number } | { outcome: "HEALTHY" };

/** Settings of a sale as Redis keeps them. */
export function settingsOf(s: {
  opensAt: Date;
  closesAt: Date;
  holdMs: number;
  maxUnitsPerCustomer: number;
  reserving: boolean;
  shiftMs: number;
  pausedAtMs: number;
  version: number;
}) {
  return {
    opensAt: s.opensAt.getTime(),
    closesAt: s.closesAt.getTime(),
    holdMs: s.holdMs,
    limit: s.maxUnitsPerCustomer,
    reserving: s.reserving ? 1 : 0,
    shift: s.shiftMs,
    pausedAt: s.pausedAtMs,
    version: s.version,
  };
}

async function drain(ctx: Context, saleId: string): Promise<number> {
  const journal = saleKeys(saleId).journal;
  const mark = await ctx.marks.position(saleId);
  let from = "-";
  let drained = 0;
  for (;;) {
    const raw = await ctx.redis.client.xrange(journal, from, "+", "COUNT", DRAIN_ENTRIES);
    if (raw.length === 0) return drained;
    from = `(${raw.at(-1)?.[0]}`;
    const entries: JournalEntry[] = [];
    for (const r of raw) {
      try {
        entries.push(parseEntry(r));
      } catch (error) {
        ctx.log.error({ err: error, saleId, entry: r[0] }, "a journal entry cannot be read; persist sets it aside");
      }
    }
    const write = (some: JournalEntry[]) =>
      ctx.db.transaction(async (tx) => {
        await mirrorHolds(tx, saleId, some, mark);
        await recordConfirmed(tx, some);
      });
    const passedOver = (part: JournalEntry, error: unknown) =>
      ctx.log.error({ err: error, saleId, entry: part.id }, "Postgres refuses a transition; persist sets it aside");
    // A sale is not kept from being rebuilt by one hold that cannot be written down.
    await withoutGuilty(
      write,
      entries.filter((e) => e.transitions.length > 0),
      (entry) => withoutGuilty(write, byHold(entry), passedOver),
    );
    drained += entries.length;
  }
}

/** Everything that an image is made of. Each statement sees its own moment; `steadyRows` makes one of them. */
async function rowsOf(tx: Tx, saleId: string) {
  const [sale] = await tx.select().from(sales).where(eq(sales.id, saleId));
  if (!sale) throw new Error(`no sale ${saleId}`);
  const itemRows = await tx.select().from(items).where(eq(items.saleId, saleId)).orderBy(items.position);
  const mirrored = await tx.select().from(reservations).where(eq(reservations.saleId, saleId));
  const live = await tx
    .select()
    .from(payments)
    .where(
      and(eq(payments.saleId, saleId), notInArray(payments.state, [...PAYMENT_ENDED_UNPAID]), eq(payments.late, false)),
    );
  const orderRows = await tx
    .select({ reference: orders.reference, status: orders.status })
    .from(orders)
    .where(eq(orders.saleId, saleId));
  const moves = await tx
    .select({ id: stockMoves.id, delta: stockMoves.delta })
    .from(stockMoves)
    .where(and(eq(stockMoves.saleId, saleId), inArray(stockMoves.state, ["granted", "done"])));
  const [position] = await tx.select().from(journalPositions).where(eq(journalPositions.saleId, saleId));
  return { sale, itemRows, mirrored, live, orderRows, moves, position };
}

/**
 * The same of one moment. The epoch is locked, so nothing is claimed or taken away meanwhile; what still happens is
 * that units are un-claimed or added, and either shows in the items: read until they stand still.
 */
async function steadyRows(tx: Tx, saleId: string) {
  for (let reading = 1; ; reading++) {
    const rows = await rowsOf(tx, saleId);
    const after = await tx.select().from(items).where(eq(items.saleId, saleId)).orderBy(items.position);
    if (JSON.stringify(after) === JSON.stringify(rows.itemRows)) return rows;
    if (reading === READINGS_MAX) throw new Unavailable(`the items of ${saleId} do not stand still`, 1000);
  }
}

/**
 * The sale as Postgres knows it, as an image for install. Runs inside the transaction that raised the epoch, and brings
 * the mirror in line with what was decided from payments and orders.
 */
async function snapshot(
  tx: Tx,
  saleId: string,
  epoch: number,
  instance: Instance,
): Promise<{ image: InstallImage; dropped: number }> {
  const { sale, itemRows, mirrored, live, orderRows, moves, position } = await steadyRows(tx, saleId);

  const holds = new Map<string, Hold>();
  const claimedKeys = new Set<string>();
  for (const r of mirrored) {
    // Paying or confirmed in the mirror is decided by the payment below; without a live one it is held (rule D).
    const word = RESERVATION_LETTERS[r.state as ReservationLetter];
    const state = word === "paying" || word === "confirmed" ? "held" : word;
    holds.set(r.key, {
      state,
      deadlineMs: r.deadlineMs,
      reference: r.reference,
      lines: r.lines,
      customerId: r.customerId,
    });
  }
  const orderOf = new Map(orderRows.map((o) => [o.reference, o.status]));
  for (const p of live) {
    // Rule J: with an order -> confirmed; with a live payment -> paying under its reference.
    const lines = p.lines.map((l) => `${l.sku}:${l.quantity}`).join(",");
    const state =
      orderOf.has(p.reference) || p.state === "refunding" || p.state === "refunded" ? "confirmed" : "paying";
    holds.set(p.reservationKey, {
      state,
      deadlineMs: holds.get(p.reservationKey)?.deadlineMs ?? 0,
      reference: p.reference,
      lines,
      customerId: p.customerId,
    });
    if (p.claimed) claimedKeys.add(p.reservationKey);
  }

  const free = new Map(itemRows.map((i) => [i.sku, i.granted - i.claimed]));
  const each = (lines: string, f: (sku: string, n: number) => void) => {
    for (const part of lines.split(",")) f(part.split(":")[0] as string, Number(part.split(":")[1]));
  };
  const isLive = (h: Hold) => h.state === "held" || h.state === "paying";
  const dropped: string[] = [];
  // Payments in line before plain holds, older holds before newer: whoever does not fit any more had a hold that a
  // later transition, lost with Redis, had already given back. It is told HOLD_LOST, uncharged.
  const unclaimed = [...holds].filter(([key, h]) => isLive(h) && !claimedKeys.has(key));
  unclaimed.sort(
    ([, a], [, b]) => Number(b.state === "paying") - Number(a.state === "paying") || a.deadlineMs - b.deadlineMs,
  );
  for (const [key, h] of unclaimed) {
    let fits = true;
    each(h.lines, (sku, n) => (fits &&= (free.get(sku) ?? 0) >= n));
    if (fits) each(h.lines, (sku, n) => free.set(sku, (free.get(sku) ?? 0) - n));
    else {
      holds.delete(key);
      dropped.push(key);
    }
  }

  const refunded = new Set(live.filter((p) => p.state === "refunded").map((p) => p.reservationKey));
  const customers = new Map<string, { units: number; keys: string[] }>();
  for (const [key, h] of holds) {
    const c = customers.get(h.customerId) ?? { units: 0, keys: [] };
    if (isLive(h) || (h.state === "confirmed" && !refunded.has(key))) each(h.lines, (_, n) => (c.units += n));
    c.keys.push(key);
    if (c.keys.length > CUSTOMER_KEYS_MAX) c.keys.shift();
    customers.set(h.customerId, c);
  }
  const image: InstallImage = {
    epoch,
    seq: (position?.seq ?? 0) + 1,
    runId: instance.runId,
    settings: settingsOf(sale),
    free,
    holds: [...holds].map(([key, hold]) => ({ key, hold })),
    customers,
    moves,
  };
  const before = new Map(mirrored.map((r) => [r.key, r.state]));
  const decided = image.holds.flatMap(({ key, hold }) =>
    before.has(key) && before.get(key) !== letterOf(hold)
      ? [{ key, state: letterOf(hold), reference: hold.reference }]
      : [],
  );
  // What only a payment knew of: its journal entry was lost with the Redis before.
  const unmirrored = live
    .filter((p) => !before.has(p.reservationKey))
    .flatMap((p) => {
      const hold = holds.get(p.reservationKey);
      const mirror = { epoch, seq: image.seq, heldAt: p.queuedAt, changedAt: sql`now()` };
      return hold ? [{ saleId, key: p.reservationKey, ...hold, state: letterOf(hold), ...mirror }] : [];
    });
  for (let from = 0; from < unmirrored.length; from += MIRROR_ROWS_MAX)
    await tx
      .insert(reservations)
      .values(unmirrored.slice(from, from + MIRROR_ROWS_MAX))
      .onConflictDoNothing();
  // A hold that was dropped is over: the next rebuild must not bring it back.
  decided.push(...dropped.map((key) => ({ key, state: "x" as const, reference: "" })));
  await tx.execute(sql`
    update reservations r set state = d.state, reference = d.reference, epoch = ${epoch}, seq = ${image.seq},
      changed_at = now()
    from json_to_recordset(${JSON.stringify(decided)}::json) as d(key text, state text, reference text)
    where r.sale_id = ${saleId} and r.key = d.key`);
  return { image, dropped: dropped.length };
}

const letterOf = (h: Hold) =>
  (Object.keys(RESERVATION_LETTERS) as ReservationLetter[]).find(
    (l) => RESERVATION_LETTERS[l] === h.state,
  ) as ReservationLetter;

/**
 * Makes the sale whole in the Redis we are connected to, or says that it is already. `force` makes it anew although it
 * seems whole: for an operator whose books show a difference that stays.
 */
export async function rebuildSale(ctx: Context, saleId: string, { force = false } = {}): Promise<Rebuilt> {
  const by = nanoid();
  const giveUpAt = performance.now() + WAIT_MS_MAX;
  for (let first = true; first || performance.now() < giveUpAt; first = false) {
    const instance = await ctx.redis.ready(5_000);
    const sale = await ctx.sales.refresh(saleId);
    if (!sale) throw new Error(`no sale ${saleId}`);
    // Of this moment: the sale is refreshed by others too, and the epoch that we fence must be the one that we raise.
    const { epoch } = sale;
    if (sale.stoppedWhy !== null) throw new RedisNewer(`${saleId} is stopped, and not rebuilt. ${sale.stoppedWhy}`);
    if (!(force && first) && (await isHealthy(ctx, saleId))) return { outcome: "HEALTHY" };
    await checkRestored(ctx);
    if (sale.stoppedWhy !== null) continue;
    const rebuilt = await attempt(ctx, { id: saleId, epoch }, instance, by);
    if (rebuilt) return rebuilt;
    await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS));
  }
  throw new Unavailable(`sale ${saleId} could not be rebuilt yet`, 2000);
}

/**
 * One rebuild from fence to install; null where another one is under way or was faster, or the answer of install is not
 * known.
 */
async function attempt(
  ctx: Context,
  sale: { id: string; epoch: number },
  instance: Instance,
  by: string,
): Promise<Rebuilt | null> {
  const fence = () => ctx.scripts.fence(sale.id, sale.epoch, by, LEASE_MS);
  const fenced = await around("rebuild.fence", fence);
  if (fenced.outcome === "NEWER") {
    // Another rebuild may have raised it since we read it: only what Postgres has now, after Redis answered, tells.
    const now = await ctx.sales.refresh(sale.id);
    if (!now || now.epoch >= (fenced.epoch ?? 0)) return null;
    await stopSelling(ctx, [sale.id], `Redis has epoch ${fenced.epoch} of ${sale.id}, Postgres only ${now.epoch}`);
    return null;
  }
  if (fenced.outcome === "BUSY") return null;
  // A journal or a sale may be too large to be read within one lease.
  const lease = setInterval(
    () => fence().catch((error) => ctx.log.debug({ err: error, saleId: sale.id }, "the fence was not renewed")),
    LEASE_MS / 3,
  );
  let raised: Awaited<ReturnType<typeof raise>>;
  try {
    await around("rebuild.drain", () => drain(ctx, sale.id));
    raised = await around("rebuild.raise", () => raise(ctx, sale.id, sale.epoch, instance));
  } catch (error) {
    if (!(error instanceof PostgresOlder)) throw error;
    await stopSelling(ctx, [sale.id], error.message);
    return null;
  } finally {
    clearInterval(lease);
  }
  if (!raised) return null;
  const { image, dropped } = raised;
  // An unknown reply is not sent again: the next attempt raises the epoch once more (rule I).
  const installed = await around("rebuild.install", () => ctx.scripts.install(sale.id, image)).catch((error) => {
    ctx.log.warn({ err: error, saleId: sale.id }, "install gave no answer; raising the epoch again");
    return null;
  });
  if (installed !== "INSTALLED") return null;
  await ctx.sales.refresh(sale.id);
  await ctx.marks.reached(sale.id, image.seq - 1);
  ctx.metrics.rebuilds.inc();
  const rebuilt = { epoch: image.epoch, holds: image.holds.length, dropped };
  ctx.log[dropped > 0 ? "error" : "info"]({ saleId: sale.id, ...rebuilt }, "sale rebuilt in Redis from Postgres");
  return { outcome: "REBUILT", ...rebuilt };
}

/**
 * Raises the epoch from the one that was fenced and drained, and takes the snapshot with it; null when somebody else
 * has raised it since.
 */
function raise(ctx: Context, saleId: string, from: number, instance: Instance) {
  return ctx.db.transaction(async (tx) => {
    const [row] = await tx.select().from(epochs).where(eq(epochs.saleId, saleId)).for("update");
    if (row?.epoch !== from || row.stoppedWhy !== null) return null;
    const epoch = from + 1;
    await tx
      .update(epochs)
      .set({ epoch, ...instance })
      .where(eq(epochs.saleId, saleId));
    return snapshot(tx, saleId, epoch, instance);
  });
}

/** Recorded instance, present, same epoch, not behind, not fenced, no count missing. */
async function isHealthy(ctx: Context, saleId: string): Promise<boolean> {
  const sale = await ctx.sales.get(saleId);
  if (!sale || sale.epoch === 0 || !ctx.sales.isRecorded(sale)) return false;
  try {
    await ctx.scripts.stock(ctx.sales.stamp(sale), [...sale.items.keys()]);
    return true;
  } catch (error) {
    if (error instanceof Unavailable) throw error;
    return false;
  }
}

/** One rebuild of a sale at a time in this process, however many callers notice. */
export function rebuilder(ctx: Context) {
  const running = new Map<string, Promise<Rebuilt>>();
  return (saleId: string): Promise<Rebuilt> => {
    let one = running.get(saleId);
    if (!one) {
      one = rebuildSale(ctx, saleId).finally(() => running.delete(saleId));
      running.set(saleId, one);
    }
    return one;
  };
}
