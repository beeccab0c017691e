/**
 * reconcile: finishes what a crash, a lost answer or a slow gateway left open. Safe to run at any time, in any number:
 * every step is a guarded update or a script that repeats harmlessly. Each step is bounded; the next run goes on. This
 * is the list of the steps; those that ask a gateway have loops of their own in a worker (workers.ts), so that a slow
 * gateway delays no other recovery.
 */
import { asc, eq, inArray } from "drizzle-orm";
import type { Context } from "../context.ts";
import { isOver, type Sale } from "../domain/sale.ts";
import { finishMove } from "../stages/top-up.ts";
import { sales, stockMoves } from "../stores/schema.ts";
import { followHonoured, followPaying, recordCaptured, requeue } from "./holds.ts";
import { walkCharges } from "./late-money.ts";
import { lookUpOnce } from "./open-payments.ts";
import { settingsOf } from "./rebuild.ts";
import { refundOnce } from "./refunds.ts";
import { checkRestored } from "./restored.ts";

const BATCH_MAX = 200;

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
 * One bounded round over everything; `walk`: also over what is seldom found open; `asking: false` leaves out the steps
 * that ask a gateway. A step that fails leaves the others to run; its error is thrown at the end.
 */
export async function reconcileOnce(ctx: Context, { walk = false, asking = true } = {}): Promise<Reconciled> {
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
  if (asking) await step(async () => ({ lookedUp: await lookUpOnce(ctx) }));
  await step(async () => ({ ordersRecorded: await recordCaptured(ctx, walk) }));
  for (const sale of await ctx.sales.all()) {
    // A sale that stands waits for a person, and holds up no other.
    if (sale.stoppedWhy !== null || (isOver(sale) && !walk)) continue;
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
  if (asking) await step(async () => ({ refunds: await refundOnce(ctx) }));
  await step(async () => ({ movesFinished: await finishMoves(ctx) }));
  if (asking && walk)
    for (const g of ctx.gateways.values()) await step(async () => ({ strayCharges: await walkCharges(ctx, g) }));
  if (errors.length > 0) throw errors[0];
  return done;
}
