/**
 * What the audit alone can see, made known where people look: an order stands, and the gateway's list has no such
 * capture (refunded at its console, say). The payment is marked for a person, and the mark goes when a later reading is
 * fine.
 */
import { and, eq, inArray, isNull, notInArray } from "drizzle-orm";
import type { Context } from "../context.ts";
import { DENIED } from "../payments/rows.ts";
import { payments } from "../stores/schema.ts";
import type { Audit } from "./audit.ts";

export async function noteDenied(ctx: Context, audit: Audit): Promise<void> {
  const captured = and(eq(payments.saleId, audit.saleId), eq(payments.state, "captured"));
  const denied = audit.attention.filter((a) => a.state === "captured").map((a) => a.reference);
  if (denied.length > 0)
    await ctx.db
      .update(payments)
      .set({ attention: DENIED })
      .where(and(captured, inArray(payments.reference, denied), isNull(payments.attention)));
  await ctx.db
    .update(payments)
    .set({ attention: null })
    .where(
      and(captured, eq(payments.attention, DENIED), notInArray(payments.reference, denied.length > 0 ? denied : [""])),
    );
}
