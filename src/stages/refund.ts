/**
 * refund: begins here, by an operator's word; reconcile asks the gateway until it says "refunded". Units are un-claimed
 * and put back on sale only in the transaction that records that answer (rule M).
 */
import { and, eq, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { orderIdOf } from "../domain/ids.ts";
import { orders, payments } from "../stores/schema.ts";

/** False when the order is being refunded already, or was. */
export async function beginRefund(
  ctx: Pick<Context, "db">,
  reference: string,
  { reason, restock }: { reason: string; restock: boolean },
): Promise<boolean> {
  return around("refund.begin", () =>
    ctx.db.transaction(async (tx) => {
      const changed = await tx
        .update(orders)
        .set({ status: "refunding", refundReason: reason, restock })
        .where(and(eq(orders.id, orderIdOf(reference)), eq(orders.status, "confirmed")))
        .returning({ id: orders.id });
      if (changed.length === 0) return false;
      await tx
        .update(payments)
        .set({ state: "refunding", checkAt: sql`now()` })
        .where(and(eq(payments.reference, reference), eq(payments.state, "captured")));
      return true;
    }),
  );
}
