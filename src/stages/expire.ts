/** release and expire: holds given back by the shopper or by the clock (lua/release.lua, lua/expire.lua). */

import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { Sale } from "../domain/sale.ts";

type Needs = Pick<Context, "metrics" | "sales" | "scripts">;

const BATCH_MAX = 100;
const ROUNDS_MAX = 50;

/** Gives back what is due, oldest first, a bounded number of batches. Answers how many holds. */
export async function expireOnce(ctx: Needs, sale: Sale): Promise<number> {
  let total = 0;
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const { results } = await around("expire.redis", () =>
      ctx.sales.call(sale, (s) => ctx.scripts.expire(s, BATCH_MAX)),
    );
    const n = results[0] ?? 0;
    total += n;
    if (n < BATCH_MAX) break;
  }
  if (total > 0) {
    ctx.metrics.outcomes.inc({ stage: "expire", outcome: "EXPIRED" }, total);
  }
  return total;
}
