/**
 * What a request names: the sale or the reservation of that id, else NOT_FOUND; a hold as Redis has it, else HOLD_LOST.
 */
import type { Context } from "../context.ts";
import type { Hold, SaleClock } from "../domain/hold.ts";
import type { ReservationId } from "../domain/ids.ts";
import type { Sale } from "../domain/sale.ts";
import { NAME } from "./contract.ts";
import { Problem } from "./problem.ts";

/** What cannot be an id is asked for nowhere. */
export async function findSale(ctx: Pick<Context, "sales">, id: string | undefined): Promise<Sale> {
  const sale = id !== undefined && NAME.test(id) ? await ctx.sales.get(id) : null;
  if (!sale) throw new Problem("NOT_FOUND", "no such sale");
  return sale;
}

/** A genuine id of this customer; any other is refused before a store is asked. */
export async function findReservation(
  ctx: Pick<Context, "ids" | "sales">,
  text: string | undefined,
  customerId: string,
): Promise<{ sale: Sale; id: ReservationId }> {
  const id = ctx.ids.parse(text ?? "", customerId);
  const sale = id && (await ctx.sales.getByNo(id.saleNo));
  if (!id || !sale) throw new Problem("NOT_FOUND", "no such reservation");
  return { sale, id };
}

/** Redis does not know a hold of a genuine id: it was lost in a failure, and not charged. */
export const holdLost = () => new Problem("HOLD_LOST");

export async function readHold(
  ctx: Pick<Context, "sales" | "scripts">,
  sale: Sale,
  key: string,
): Promise<{ hold: Hold; clock: SaleClock }> {
  const clock = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, [key]));
  const hold = clock.results[0];
  if (!hold) throw holdLost();
  return { hold, clock };
}
