/**
 * What a person decides about a payment when the gateway's word cannot be used. Each decision is one transaction that
 * locks the row, reads what is stored now (rule B), raises the fence, so that an answer that was on its way is not
 * written over it, and stays readable in `settled`.
 */
import { eq, sql } from "drizzle-orm";
import type { PgUpdateSetSource } from "drizzle-orm/pg-core";
import type { Context } from "../context.ts";
import { PAYMENT_OPEN, type PaymentState } from "../domain/lifecycle.ts";
import { unclaimUnits } from "../payments/claim.ts";
import { CAPTURED_LATE, needsPerson, type Payment } from "../payments/rows.ts";
import type { Tx } from "../stores/postgres.ts";
import { orders, payments, type Settled } from "../stores/schema.ts";
import { writeRefunded } from "./refunds.ts";

export interface Decision {
  action: Settled["action"];
  reason: string;
  restock: boolean;
}
export type SettledByHand =
  | { outcome: "SETTLED"; payment: Payment; before: Payment }
  | { outcome: "REPLAYED" }
  | { outcome: "REFUSED"; why: string };

type Order = typeof orders.$inferSelect;
type Row = { payment: Payment; order: Order | null };
type Change = PgUpdateSetSource<typeof payments>;

const isOpen = (p: Payment) => (PAYMENT_OPEN as readonly PaymentState[]).includes(p.state);
const done = { attention: null, troubledSince: null, checkAt: null, token: null, actionUrl: null } as const;

async function change(tx: Tx, p: Payment, to: Change): Promise<void> {
  await tx
    .update(payments)
    .set({ ...to, fence: sql`${payments.fence} + 1` })
    .where(eq(payments.reference, p.reference));
}

/** It stands as paid, with the payment's own amount; its units were claimed before it was sent. */
async function accept(tx: Tx, { payment: p }: Row, settled: Settled): Promise<string | null> {
  if (isOpen(p) && p.claimed) {
    await change(tx, p, { ...done, state: "captured", capturedAt: sql`now()`, settled });
    return null;
  }
  if (p.state !== "captured") return `it is ${p.state}: there is nothing to accept`;
  await change(tx, p, { attention: null, troubledSince: null, settled });
  return null;
}

/** An ended payment whose money goes back, as late money does; of what the gateway says that it took. */
async function refundOpen(tx: Tx, p: Payment, settled: Settled): Promise<void> {
  await unclaimUnits(tx, p.saleId, p.lines);
  await change(tx, p, {
    ...done,
    state: "refunding",
    claimed: false,
    late: true,
    amount: p.capturedAmount ?? p.amount,
    currency: p.capturedCurrency ?? p.currency,
    attention: CAPTURED_LATE,
    checkAt: sql`now()`,
    settled,
  });
}

async function refund(tx: Tx, { payment: p, order }: Row, settled: Settled, restock: boolean): Promise<string | null> {
  if (isOpen(p) && p.claimed) {
    await refundOpen(tx, p, settled);
    return null;
  }
  const again = { attention: null, troubledSince: null, checkAt: sql`now()`, settled };
  if (p.state === "refunding") {
    await change(tx, p, { ...again, attention: p.late ? CAPTURED_LATE : null });
    return null;
  }
  if (p.state !== "captured") return `it is ${p.state}: there is nothing to refund`;
  if (!order) return "its order is being written: try again in a moment";
  await tx
    .update(orders)
    .set({ status: "refunding", refundReason: settled.reason, restock })
    .where(eq(orders.id, order.id));
  await change(tx, p, { ...again, state: "refunding" });
  return null;
}

/** The shop has no money of it: never charged, or given back at the gateway's console. The units go back on sale. */
async function notCharged(tx: Tx, { payment: p, order }: Row, settled: Settled): Promise<string | null> {
  if (p.state === "refunding") {
    await change(tx, p, { settled });
    await writeRefunded(tx, p, order);
    return null;
  }
  if (!isOpen(p))
    return `it is ${p.state}: only an open payment or refund can end as not charged; an order is refunded`;
  if (p.claimed) await unclaimUnits(tx, p.saleId, p.lines);
  await change(tx, p, {
    ...done,
    state: "cancelled",
    claimed: false,
    declineCode: "settled_by_hand",
    endedAt: sql`now()`,
    settled,
  });
  return null;
}

/**
 * Applies it to a payment that needs a person. The same decision again answers REPLAYED; another one is refused, unless
 * the payment came to need a person once more. While a call of ours may still run there is nothing to decide yet.
 */
export async function settleByHand(ctx: Context, reference: string, d: Decision): Promise<SettledByHand> {
  return ctx.db.transaction(async (tx): Promise<SettledByHand> => {
    const [locked] = await tx.select().from(payments).where(eq(payments.reference, reference)).for("update");
    if (!locked) return { outcome: "REFUSED", why: "no such payment" };
    const [order] = await tx
      .select()
      .from(orders)
      .where(eq(orders.id, `ord_${reference}`));
    const row: Row = { payment: locked, order: order ?? null };
    const [needs] = await tx
      .select({ waits: sql<boolean>`coalesce(${needsPerson}, false)` })
      .from(payments)
      .where(eq(payments.reference, reference));
    const waits = needs?.waits === true;
    if (!waits && locked.settled?.action === d.action) return { outcome: "REPLAYED" };
    if (!waits) return { outcome: "REFUSED", why: `it is ${locked.state}, and nothing about it waits for a person` };
    const lapsedMs = locked.sentAt === null ? Number.POSITIVE_INFINITY : Date.now() - locked.sentAt.getTime();
    if (locked.state === "sending" && lapsedMs < ctx.config.gatewayLeaseMs)
      return { outcome: "REFUSED", why: "the call to the gateway may still be running: wait for its answer" };
    const settled: Settled = { action: d.action, reason: d.reason, from: locked.state, why: locked.attention };
    const why =
      d.action === "accept"
        ? await accept(tx, row, settled)
        : d.action === "refund"
          ? await refund(tx, row, settled, d.restock)
          : await notCharged(tx, row, settled);
    if (why !== null) return { outcome: "REFUSED", why };
    const [after] = await tx.select().from(payments).where(eq(payments.reference, reference));
    return { outcome: "SETTLED", payment: after as Payment, before: locked };
  });
}
