/** Refunds asked for, until the gateway has said refunded; un-claim and restock in that very transaction (rule M). */
import { and, asc, eq, lte, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { GatewayAnswer } from "../gateways/port.ts";
import { unclaimUnits } from "../payments/claim.ts";
import { CAPTURED_LATE, inMs, type Payment } from "../payments/rows.ts";
import { afterTrouble, isTroubled, toldAfter } from "../payments/settle.ts";
import type { Tx } from "../stores/postgres.ts";
import { orderOfPayment, orders, payments, stockMoves } from "../stores/schema.ts";
import { ask, eachDue, widthOf } from "./ask.ts";

const BATCH_MAX = 200;
/** Asked again after this when the gateway gave no definite answer, or was at its limit; then ever rarer. */
const REFUND_AGAIN_MS = 5_000;
/** A refusal is told at once; a gateway that is away only when it stays away. */
const AWAY_TOLD_MS = 60_000;

type Order = typeof orders.$inferSelect;

/** Under the number it was found with: two workers do not ask about the same refund at once. */
async function takeRefund(ctx: Context, p: Payment): Promise<Payment | null> {
  const [mine] = await ctx.db
    .update(payments)
    .set({ fence: sql`${payments.fence} + 1`, lookedAt: sql`now()`, checkAt: inMs(ctx.config.gatewayLeaseMs) })
    .where(and(eq(payments.reference, p.reference), eq(payments.fence, p.fence), eq(payments.state, "refunding")))
    .returning();
  return mine ?? null;
}

/** Of payment and order, with the units and the customer's paid units that end with it. */
export async function writeRefunded(tx: Tx, p: Payment, order: Order | null): Promise<boolean> {
  const restock = order?.restock === true;
  const [changed] = await tx
    .update(payments)
    .set({
      state: "refunded",
      endedAt: sql`now()`,
      checkAt: null,
      troubledSince: null,
      attention: p.late ? CAPTURED_LATE : null,
      ...(restock && { claimed: false }),
    })
    .where(and(eq(payments.reference, p.reference), eq(payments.state, "refunding")))
    .returning();
  if (!changed || !order) return changed !== undefined;
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
    const delta = restock ? l.quantity : 0;
    await tx
      .insert(stockMoves)
      .values({ ...move, id: `rf_${p.reference}_${l.sku}`, sku: l.sku, delta, customerUnits: l.quantity })
      .onConflictDoNothing();
  }
  return true;
}

function whyNot(answer: GatewayAnswer): string {
  if (answer.outcome === "unknown" || answer.outcome === "not_done") return answer.why;
  return `the gateway answers ${answer.outcome}`;
}

/** Refused, or not known: asked for again under the same key, ever rarer, and told to a person. */
async function notRefunded(ctx: Context, mine: Payment, answer: GatewayAnswer): Promise<void> {
  const away = answer.outcome === "not_done" || (answer.outcome === "unknown" && !answer.answered);
  const working = answer.outcome === "pending";
  const attention = toldAfter(away || working ? AWAY_TOLD_MS : 0, `not refunded: ${whyNot(answer)}`);
  await ctx.db
    .update(payments)
    .set({
      ...isTroubled,
      attention,
      checkAt: answer.outcome === "not_done" ? inMs(REFUND_AGAIN_MS) : afterTrouble(REFUND_AGAIN_MS),
    })
    .where(
      and(eq(payments.reference, mine.reference), eq(payments.fence, mine.fence), eq(payments.state, "refunding")),
    );
}

async function refund(ctx: Context, p: Payment, order: Order | null): Promise<"BUSY" | boolean> {
  const gateway = ctx.gateways.get(p.gateway);
  if (!gateway) return false;
  const asked = await ask(
    ctx,
    gateway,
    "refund",
    "refund",
    () => takeRefund(ctx, p),
    (mine) => around("gateway.refund", () => gateway.refund(mine.reference, mine.amount)),
  );
  if (asked === "BUSY") return "BUSY";
  if (asked === null) return false;
  if (asked.answer.outcome !== "refunded") {
    await notRefunded(ctx, asked.asked, asked.answer);
    return false;
  }
  return around("refund.done", () => ctx.db.transaction((tx) => writeRefunded(tx, asked.asked, order)));
}

/** One bounded round over those that are due, side by side. One that a person has to look at comes after the others. */
export async function refundOnce(ctx: Context): Promise<number> {
  const due = await ctx.db
    .select({ payment: payments, order: orders })
    .from(payments)
    .leftJoin(orders, orderOfPayment)
    .where(and(eq(payments.state, "refunding"), lte(payments.checkAt, sql`now()`)))
    .orderBy(sql`${payments.troubledSince} is not null`, asc(payments.checkAt))
    .limit(BATCH_MAX);
  const work = due.map(({ payment, order }) => ({ gateway: payment.gateway, payment, order }));
  return eachDue(work, widthOf(ctx), ({ payment, order }) =>
    refund(ctx, payment, order).catch((error) => {
      ctx.log.error({ err: error, reference: payment.reference }, "refund stopped half-way");
      return false;
    }),
  );
}
