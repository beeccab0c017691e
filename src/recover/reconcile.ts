/**
 * reconcile: finishes what a crash, a lost answer or a slow gateway left open. Safe to run at any time, in any number: every
 * step is a guarded update or a script that repeats harmlessly. Each step is bounded; the next run goes on.
 */

import { and, asc, eq, gt, inArray, isNull, lt, lte, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { Unavailable } from "../domain/errors.ts";
import type { Hold } from "../domain/hold.ts";
import { lateStatesBefore, PAYMENT_OPEN } from "../domain/lifecycle.ts";
import { isOver, type Sale } from "../domain/sale.ts";
import type { Gate } from "../gateways/gate.ts";
import type { Gateway, GatewayAnswer, ListedCharge } from "../gateways/port.ts";
import {
  cancelQueued,
  claimLate,
  endedUnpaid,
  findPayments,
  HONOURED,
  leavesHold,
  type Payment,
  settlePayment,
  takeOver,
  unclaimUnits,
  whileSelling,
  writeTombstone,
} from "../payments/rows.ts";
import { askGateway, chargeRequest } from "../stages/charge.ts";
import { recordOrders } from "../stages/persist.ts";
import { settleHolds } from "../stages/settle-holds.ts";
import { finishMove } from "../stages/top-up.ts";
import { withoutGuilty } from "../stores/coalesce.ts";
import { saleKeys } from "../stores/keys.ts";
import { isDataError } from "../stores/refused.ts";
import { gates, orderOfPayment, orders, payments, sales, stockMoves } from "../stores/schema.ts";
import { settingsOf } from "./rebuild.ts";
import { checkRestored, noteStray } from "./restored.ts";
import { strayOf } from "./stray.ts";

const BATCH_MAX = 200;
const LIST_PAGE = 100;
/** A step of the normal way that is younger than this is left to whoever is doing it. */
const SETTLED_MS = 2_000;
/** Captures younger than this are looked at every time; longer than from one walk to the next, and than a commit takes. */
const RECENT_MS = 60_000;
/** How often a reference that the gateway has not heard of is sent again before its door is closed. */
const SENDS_MAX = 3;
/**
 * Shortest time that a gateway keeps an idempotency key (PayPal: 6 h, docs/measurements.md#gateways), less a margin.
 * Later there are only look-ups (rule A).
 */
const KEY_LIFE_MS = 5 * 3_600_000;
/** Longer than any hold's grace: so long an honoured capture is followed up. */
const HONOURED_MS = 3_600_000;
const URGENT_WAIT_MS = 1_500;
/** Refund is asked for again after this when the gateway gave no definite answer. */
const REFUND_AGAIN_MS = 5_000;

export interface Reconciled {
  lookedUp: number;
  ordersRecorded: number;
  holdsFollowed: number;
  requeued: number;
  waitedTooLong: number;
  refunds: number;
  movesFinished: number;
  strayCharges: number;
}

const ago = (ms: number) => sql`now() - ${ms} * interval '1 millisecond'`;

/** Asks the gateway under an urgent permit; null when none came free in time. */
async function ask(
  ctx: Context,
  gateway: Gateway,
  gate: Gate | undefined,
  kind: "charge" | "lookUp" | "cancel" | "refund",
  call: () => Promise<GatewayAnswer>,
): Promise<GatewayAnswer | null> {
  if (!gate) return (await askGateway(ctx, gateway, kind, call)).answer;
  const permit = await gate.takeUrgent(URGENT_WAIT_MS);
  if (!permit) return null;
  if (!permit.covers()) {
    await gate.settle(permit, null, null);
    return null;
  }
  const { answer, callMs } = await askGateway(ctx, gateway, kind, call);
  await gate.settle(permit, answer, callMs);
  return answer;
}

/**
 * One open payment: look it up; if the gateway has not heard of it and the last send cannot be running any more, send the
 * same reference again, and at last close its door by a cancel. "Not found" alone ends nothing (rule A).
 */
async function resolve(ctx: Context, p: Payment): Promise<Payment | null> {
  const gateway = ctx.gateways.get(p.gateway);
  const gate = ctx.gates.get(p.gateway);
  if (!gateway) return null;
  const leaseMs = ctx.config.gatewayLeaseMs;
  const mine = await around("reconcile.takeOver", () => takeOver(ctx.db, p.reference, p.fence, leaseMs, false));
  if (!mine) return null;
  const settle = (asked: Payment, answer: GatewayAnswer | null) =>
    around("reconcile.outcome", () =>
      settlePayment(ctx.db, asked, answer ?? { outcome: "pending" }, ctx.config.actionDeadlineMs),
    );
  const cancel = () =>
    ask(ctx, gateway, gate, "cancel", () => around("gateway.cancel", () => gateway.cancel(mine.reference)));

  const said = await ask(ctx, gateway, gate, "lookUp", () =>
    around("gateway.lookUp", () => gateway.lookUp(mine.reference)),
  );
  const pastDeadline = mine.actionDeadline !== null && mine.actionDeadline.getTime() < Date.now();
  if (said?.outcome === "action_required" && pastDeadline) {
    // Close the door before releasing; captured meanwhile answers "not cancelled" and the next look finds it.
    return settle(mine, await cancel());
  }
  if (said?.outcome !== "not_found") return settle(mine, said);

  const callEnded = mine.sentAt === null || Date.now() - mine.sentAt.getTime() > leaseMs;
  const keyAlive = mine.firstSentAt === null || Date.now() - mine.firstSentAt.getTime() < KEY_LIFE_MS;
  if (!callEnded) return settle(mine, said);
  if (!keyAlive) {
    await ctx.db
      .update(payments)
      .set({ attention: "the gateway has not heard of it and its key may have expired: look at the gateway's console" })
      .where(eq(payments.reference, mine.reference));
    return settle(mine, said);
  }
  const patient = Date.now() - mine.queuedAt.getTime() < ctx.config.payWaitMsMax;
  if (mine.sends < SENDS_MAX && patient && !pastDeadline) {
    const again = await takeOver(ctx.db, mine.reference, mine.fence, leaseMs, true);
    return (
      again &&
      settle(
        again,
        await ask(ctx, gateway, gate, "charge", () =>
          around("gateway.chargeAgain", () => gateway.charge(chargeRequest(again))),
        ),
      )
    );
  }
  return settle(mine, await cancel());
}

export type Closed =
  | { outcome: "closed" | "unknown" }
  | { outcome: "captured"; gateway: string; amount: number; currency: string };

/** Closes the door of a reference that Postgres does not know, at every gateway that may know it; or says that one captured it. */
export async function closeDoor(ctx: Context, reference: string): Promise<Closed> {
  for (const gateway of ctx.gateways.values()) {
    if (!gateway.needsPermits) continue;
    const gate = ctx.gates.get(gateway.name);
    const said = await ask(ctx, gateway, gate, "cancel", () =>
      around("gateway.cancel", () => gateway.cancel(reference)),
    );
    if (said?.outcome === "captured")
      return { outcome: "captured", gateway: gateway.name, amount: said.amount, currency: said.currency };
    if (said?.outcome !== "cancelled" && said?.outcome !== "declined" && said?.outcome !== "refunded")
      return { outcome: "unknown" };
  }
  return { outcome: "closed" };
}

async function resolveOpen(ctx: Context): Promise<number> {
  const due = await ctx.db
    .select()
    .from(payments)
    .where(and(inArray(payments.state, [...PAYMENT_OPEN]), lte(payments.checkAt, sql`now()`)))
    .orderBy(asc(payments.checkAt))
    .limit(BATCH_MAX);
  let looked = 0;
  // Side by side up to the gates' limits; the permits keep the order.
  const next = async (): Promise<void> => {
    for (let p = due.shift(); p; p = due.shift()) {
      const stored = await resolve(ctx, p).catch((error) => {
        ctx.log.error({ err: error, reference: p?.reference }, "look-up stopped half-way");
        return null;
      });
      if (stored) {
        looked++;
        await settleHolds(ctx, [stored]);
      }
    }
  };
  await Promise.all(Array.from({ length: 4 }, next));
  return looked;
}

/**
 * Captured in Postgres and missing from the stream: the order is recorded from the payment's snapshot, with or without Redis. Of all captures only
 * on a walk: else a sale's every order would be looked at again every second.
 */
async function recordCaptured(ctx: Context, walk: boolean): Promise<number> {
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
async function followPaying(ctx: Context, sale: Sale): Promise<number> {
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
 * Honoured captures, until their holds are confirmed: a decline of before may have made one held again, with its order recorded already, and
 * then nothing else would look at it (found by the model in test/ladder.test.ts, after two crashes).
 */
async function followHonoured(ctx: Context): Promise<void> {
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
async function requeue(ctx: Context): Promise<{ requeued: number; waitedTooLong: number }> {
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

/** Refunds asked for, until the gateway has said refunded; un-claim and restock in that very transaction (rule M). */
async function refund(ctx: Context): Promise<number> {
  const due = await ctx.db
    .select({ payment: payments, order: orders })
    .from(payments)
    .leftJoin(orders, orderOfPayment)
    .where(and(eq(payments.state, "refunding"), lte(payments.checkAt, sql`now()`)))
    .limit(BATCH_MAX);
  let refunds = 0;
  for (const { payment: p, order } of due) {
    const gateway = ctx.gateways.get(p.gateway);
    if (!gateway) continue;
    const answer = await ask(ctx, gateway, ctx.gates.get(p.gateway), "refund", () =>
      around("gateway.refund", () => gateway.refund(p.reference, p.amount)),
    );
    if (answer?.outcome !== "refunded") {
      await ctx.db
        .update(payments)
        .set({ checkAt: sql`now() + ${REFUND_AGAIN_MS} * interval '1 millisecond'` })
        .where(eq(payments.reference, p.reference));
      continue;
    }
    await around("refund.done", () =>
      ctx.db.transaction(async (tx) => {
        const restock = order?.restock === true;
        const [changed] = await tx
          .update(payments)
          .set({ state: "refunded", endedAt: sql`now()`, checkAt: null, ...(restock && { claimed: false }) })
          .where(and(eq(payments.reference, p.reference), eq(payments.state, "refunding")))
          .returning();
        if (!changed || !order) return;
        await tx.update(orders).set({ status: "refunded", refundedAt: sql`now()` }).where(eq(orders.id, order.id));
        if (restock) await unclaimUnits(tx, p.saleId, p.lines);
        // The customer's paid units end with the refund, whether or not the goods go back on sale.
        const move = {
          saleId: p.saleId,
          reason: `refund of ${order.id}`,
          orderId: order.id,
          customerId: p.customerId,
          state: "granted" as const,
        };
        for (const l of p.lines) {
          await tx
            .insert(stockMoves)
            .values({
              ...move,
              id: `rf_${p.reference}_${l.sku}`,
              sku: l.sku,
              delta: restock ? l.quantity : 0,
              customerUnits: l.quantity,
            })
            .onConflictDoNothing();
        }
      }),
    );
    refunds++;
  }
  return refunds;
}

async function finishMoves(ctx: Context): Promise<number> {
  const open = await ctx.db
    .select()
    .from(stockMoves)
    .where(inArray(stockMoves.state, ["pending", "granted"]))
    .orderBy(asc(stockMoves.createdAt))
    .limit(BATCH_MAX);
  const failed: unknown[] = [];
  for (const move of open) {
    const sale = await ctx.sales.get(move.saleId);
    // One that cannot be finished holds up no other.
    if (sale) await finishMove(ctx, sale, move).catch((error) => failed.push(error));
  }
  if (failed.length > 0) throw failed[0];
  return open.length;
}

/** Settings that Postgres has and Redis does not (a crash between the two writes). */
export async function pushSettings(ctx: Context, sale: Sale): Promise<void> {
  const [row] = await ctx.db.select().from(sales).where(eq(sales.id, sale.id));
  if (row) await ctx.sales.call(sale, (s) => ctx.scripts.configure(s, row.version, settingsOf(row)));
}

/**
 * The ladder for late money: a capture of a payment that had ended unpaid. While its hold lives it is honoured: pinned again, claimed
 * again, confirmed. Else, and when the units are gone, the reservation is paid by another attempt or the sum differs, it is refunded: whoever
 * was told "expired" must not find an order.
 */
async function lateMoney(ctx: Context, gateway: Gateway, p: Payment, c: ListedCharge): Promise<void> {
  const sale = await ctx.sales.get(p.saleId);
  // The walk keeps its place and comes back to this charge.
  if (sale && sale.stoppedWhy !== null) throw new Unavailable(`${sale.id} stands; late money waits`);
  if (sale && p.gateway === gateway.name && c.amount === p.amount && c.currency === p.currency) {
    const pin = {
      key: p.reservationKey,
      customerId: p.customerId,
      reference: p.reference,
      referenceBefore: p.reference,
    };
    // The claim holds only in the Redis that has the pin (rule I).
    let epoch = 0;
    const { results } = await around("late.pin", () =>
      ctx.sales.call(sale, (s) => {
        epoch = s.epoch;
        return ctx.scripts.pay(s, [pin]);
      }),
    );
    // Neither yes nor no yet: the walk comes back to this charge.
    if (results[0]?.outcome === "PAUSED") throw new Unavailable("payments are paused; late money waits");
    const honoured =
      results[0]?.outcome === "PAYING" &&
      (await around("late.claim", () => claimLate(ctx.db, p.reference, c.id, p.saleId, epoch)));
    if (honoured) {
      ctx.log.warn(
        { reference: p.reference },
        "captured after its payment had ended, while its hold still lived: honoured",
      );
      return settleHolds(ctx, [honoured]);
    }
  }
  ctx.log.error({ reference: p.reference }, "captured after its payment had ended: it is refunded");
  const refund = {
    state: "refunding" as const,
    chargeId: c.id,
    gateway: gateway.name,
    amount: c.amount,
    currency: c.currency,
    late: true,
  };
  await around("late.refund", async () =>
    ctx.db
      .update(payments)
      .set({ ...refund, checkAt: sql`now()`, attention: "captured late" })
      .where(
        and(eq(payments.reference, p.reference), inArray(payments.state, lateStatesBefore("refunding")), whileSelling),
      ),
  );
}

/** Walks the gateway's own list for charges that no live payment explains; one whose reference we never made is listed for a person. */
async function walkCharges(ctx: Context, gateway: Gateway): Promise<number> {
  const [row] = await ctx.db.select().from(gates).where(eq(gates.gateway, gateway.name));
  const page = await gateway.list(row?.listCursor ?? null, LIST_PAGE);
  const captured = page.charges.filter((c) => c.status === "captured");
  const unknown = await strayOf(ctx, captured);
  await noteStray(ctx, gateway.name, unknown);
  let stray = unknown.length;
  const found = await findPayments(
    ctx.db,
    captured.map((c) => c.reference),
  );
  const ours = new Map(found.map((p) => [p.reference, p]));
  for (const c of captured) {
    const p = ours.get(c.reference);
    if (p && endedUnpaid(p)) {
      await lateMoney(ctx, gateway, p, c);
      stray++;
    }
  }
  // A page that is not full is read again: the gateway's newest charges may still change their state.
  if (page.next && page.charges.length === LIST_PAGE)
    await ctx.db.update(gates).set({ listCursor: page.next }).where(eq(gates.gateway, gateway.name));
  return stray;
}

/** One bounded round over everything; `walk`: also over what is seldom found open. A step that fails leaves the others to run; its error is logged and thrown at the end. */
export async function reconcileOnce(ctx: Context, { walk = false } = {}): Promise<Reconciled> {
  const done: Reconciled = {
    lookedUp: 0,
    ordersRecorded: 0,
    holdsFollowed: 0,
    requeued: 0,
    waitedTooLong: 0,
    refunds: 0,
    movesFinished: 0,
    strayCharges: 0,
  };
  const errors: unknown[] = [];
  const step = async (f: () => Promise<Partial<Reconciled>>) => {
    try {
      for (const [name, n] of Object.entries(await f())) done[name as keyof Reconciled] += n;
    } catch (error) {
      errors.push(error);
    }
  };
  // Before anything is ended that an older copy of Postgres knows nothing of.
  await checkRestored(ctx);
  await step(async () => ({ lookedUp: await resolveOpen(ctx) }));
  await step(async () => ({ ordersRecorded: await recordCaptured(ctx, walk) }));
  for (const sale of await ctx.sales.all()) {
    if ((isOver(sale) && !walk) || sale.stoppedWhy !== null) continue;
    await step(async () => ({ holdsFollowed: await followPaying(ctx, sale) }));
    await step(async () => {
      await pushSettings(ctx, sale);
      return {};
    });
  }
  await step(async () => {
    await followHonoured(ctx);
    return {};
  });
  await step(() => requeue(ctx));
  await step(async () => ({ refunds: await refund(ctx) }));
  await step(async () => ({ movesFinished: await finishMoves(ctx) }));
  if (walk)
    for (const g of ctx.gateways.values()) await step(async () => ({ strayCharges: await walkCharges(ctx, g) }));
  if (errors.length > 0) throw errors[0];
  return done;
}
