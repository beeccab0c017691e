/**
 * Holds and orders brought in line with what is stored of their payments (rule D), and payments put back in line.
 * Nothing here asks a gateway.
 */
import { and, asc, eq, gt, isNull, lt, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { Hold } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import {
  cancelQueued,
  findPayments,
  HONOURED,
  leavesHold,
  type Payment,
  whileSelling,
  writeTombstone,
} from "../payments/rows.ts";
import { recordOrders } from "../stages/persist.ts";
import { settleHolds } from "../stages/settle-holds.ts";
import { withoutGuilty } from "../stores/coalesce.ts";
import { saleKeys } from "../stores/keys.ts";
import { isDataError } from "../stores/refused.ts";
import { orderOfPayment, orders, payments } from "../stores/schema.ts";

const BATCH_MAX = 200;
/** A step of the normal way that is younger than this is left to whoever is doing it. */
const SETTLED_MS = 2_000;
/**
 * Captures younger than this are checked every time; longer than from one walk to the next, and than a commit takes.
 */
const RECENT_MS = 60_000;
/** Longer than any hold's grace: so long an honoured capture is followed up. */
const HONOURED_MS = 3_600_000;

const ago = (ms: number) => sql`now() - ${ms} * interval '1 millisecond'`;

/**
 * Captured in Postgres and missing from the stream: the order is recorded from the payment's snapshot, with or without
 * Redis. Of all captures only on a walk: else a sale's every order would be read again every second.
 */
export async function recordCaptured(ctx: Context, walk: boolean): Promise<number> {
  const rows = await ctx.db
    .select({ payment: payments })
    .from(payments)
    .leftJoin(orders, orderOfPayment)
    .where(
      and(
        eq(payments.state, "captured"),
        isNull(orders.id),
        lt(payments.capturedAt, ago(SETTLED_MS)),
        walk ? undefined : gt(payments.capturedAt, ago(RECENT_MS)),
      ),
    )
    .limit(BATCH_MAX);
  if (rows.length === 0) return 0;
  const captured = rows.map((r) => r.payment);
  const references = captured.map((p) => p.reference);
  let recorded = 0;
  const record = async (some: string[]) => {
    recorded += await around("reconcile.orders", () => ctx.db.transaction((tx) => recordOrders(tx, some)));
  };
  await withoutGuilty(record, references, (reference, error) =>
    ctx.log.error({ err: error, reference }, "captured, and Postgres refuses its order: a person has to look"),
  );
  ctx.work.emit("outbox");
  await settleHolds(ctx, captured).catch((error) => ctx.log.debug({ err: error }, "holds follow when Redis is back"));
  return recorded;
}

/** Rule D: every hold that has been paying for a while, compared with its payment. */
export async function followPaying(ctx: Context, sale: Sale): Promise<number> {
  const paying = saleKeys(sale.id).transitionKeys[5] as string;
  const before = Date.now() + sale.clockAheadMs - SETTLED_MS;
  const old = await ctx.redis.client.zrange(paying, "-inf", String(before), "BYSCORE");
  let followed = 0;
  for (let from = 0; from < old.length; from += BATCH_MAX)
    followed += await followSome(ctx, sale, old.slice(from, from + BATCH_MAX));
  return followed;
}

async function followSome(ctx: Context, sale: Sale, keys: string[]): Promise<number> {
  const { results } = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, keys));
  const holds = results.flatMap((hold, i) => (hold?.state === "paying" ? [{ key: keys[i] as string, hold }] : []));
  const payments = new Map<string, Payment>();
  const find = async (some: typeof holds) => {
    const references = some.map((h) => h.hold.reference);
    for (const p of await findPayments(ctx.db, references)) payments.set(p.reference, p);
  };
  await withoutGuilty(find, holds, () => {});
  const toFollow: Payment[] = [];
  /** Pinned without a row. The tombstone comes first, so that a row written late cannot be charged for. */
  const bury = (key: string, { reference, customerId }: Hold) =>
    around("reconcile.tombstone", () => {
      const reservationId = ctx.ids.reservationId(sale.no, customerId, key);
      return writeTombstone(ctx.db, { reference, saleId: sale.id, reservationId, reservationKey: key, customerId });
    }).catch((error) => {
      // The others are followed all the same.
      if (!isDataError(error)) throw error;
      ctx.log.error({ err: error, key }, "a hold is paying, and Postgres refuses its reference: a person has to look");
      return null;
    });
  for (const { key, hold } of holds) {
    const p = payments.get(hold.reference) ?? (await bury(key, hold));
    if (!p) continue;
    if (p.state === "captured" || leavesHold(p)) toFollow.push(p);
  }
  await settleHolds(ctx, toFollow);
  return toFollow.length;
}

/**
 * Honoured captures, until their holds are confirmed: a decline of before may have made one held again, with its order
 * recorded already, and then nothing else would find it (found by the model in test/ladder.test.ts, after two
 * crashes).
 */
export async function followHonoured(ctx: Context): Promise<void> {
  const rows = await ctx.db
    .select()
    .from(payments)
    .where(
      and(eq(payments.state, "captured"), eq(payments.attention, HONOURED), gt(payments.capturedAt, ago(HONOURED_MS))),
    )
    .limit(BATCH_MAX);
  await settleHolds(ctx, rows);
}

/** Queued too long -> held again; queued and not in line (a crash, a lost Redis) -> in line. */
export async function requeue(ctx: Context): Promise<{ requeued: number; waitedTooLong: number }> {
  const late = await ctx.db
    .select({ reference: payments.reference })
    .from(payments)
    .where(and(eq(payments.state, "queued"), lt(payments.queuedAt, ago(ctx.config.payWaitMsMax)), whileSelling))
    .limit(BATCH_MAX);
  await settleHolds(
    ctx,
    await cancelQueued(
      ctx.db,
      late.map((r) => r.reference),
      "waited_too_long",
    ),
  );
  const rows = await ctx.db
    .select({ reference: payments.reference, gateway: payments.gateway })
    .from(payments)
    .where(and(eq(payments.state, "queued"), lt(payments.queuedAt, ago(SETTLED_MS)), whileSelling))
    .orderBy(asc(payments.queuedAt))
    .limit(5_000);
  let requeued = 0;
  for (const name of new Set(rows.map((r) => r.gateway))) {
    const references = rows.filter((r) => r.gateway === name).map((r) => r.reference);
    const { places } = await ctx.scripts.gateView(name, references);
    const missing = references.filter((_, i) => places[i] === 0);
    if (missing.length > 0) await around("reconcile.line", () => ctx.scripts.lineJoin(name, missing));
    requeued += missing.length;
  }
  if (requeued > 0) ctx.work.emit("line");
  return { requeued, waitedTooLong: late.length };
}
