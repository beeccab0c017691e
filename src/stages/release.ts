/**
 * release: gives a hold back (lua/release.lua); a repeat answers the same. Its units are free again in the same
 * instant.
 */
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { SaleClock } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import type { ReleaseResult } from "../stores/replies.ts";

export async function release(
  ctx: Pick<Context, "sales" | "scripts">,
  sale: Sale,
  request: { key: string; customerId: string },
): Promise<{ result: ReleaseResult; clock: SaleClock }> {
  const clock = await around("release.redis", () => ctx.sales.call(sale, (s) => ctx.scripts.release(s, [request])));
  return { result: clock.results[0] ?? { outcome: "LOST" }, clock };
}
