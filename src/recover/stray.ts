/** Charges of a gateway's list that no payment of ours explains. */
import { inArray } from "drizzle-orm";
import type { Context } from "../context.ts";
import { saleNoOfReservation } from "../domain/ids.ts";
import type { ListedCharge } from "../gateways/port.ts";
import { findPayments } from "../payments/rows.ts";
import { strayCharges } from "../stores/schema.ts";

export interface Stray {
  charge: ListedCharge;
  /** Null when Postgres has no sale of this number: it was restored from before it. */
  saleId: string | null;
  /** A person has said that it is none of ours. */
  foreign: boolean;
}

/**
 * The captured ones of this page with a reservation id of ours and a reference that has no payment. A payment's row is
 * committed before its charge is sent.
 */
export async function strayOf(ctx: Context, charges: ListedCharge[]): Promise<Stray[]> {
  const ours = charges.filter((c) => c.status === "captured" && saleNoOfReservation(c.reservationId) !== null);
  if (ours.length === 0) return [];
  const references = ours.map((c) => c.reference);
  const explained = new Set((await findPayments(ctx.db, references)).map((p) => p.reference));
  const unknown = ours.filter((c) => !explained.has(c.reference));
  if (unknown.length === 0) return [];
  const rows = await ctx.db.select().from(strayCharges).where(inArray(strayCharges.reference, references));
  const foreign = new Set(rows.filter((r) => r.resolution === "foreign").map((r) => r.reference));
  const found: Stray[] = [];
  for (const charge of unknown) {
    const sale = await ctx.sales.getByNo(saleNoOfReservation(charge.reservationId) as number);
    found.push({ charge, saleId: sale?.id ?? null, foreign: foreign.has(charge.reference) });
  }
  return found;
}
