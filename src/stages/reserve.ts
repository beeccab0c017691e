/** reserve: concurrent requests of this process become one Lua call per sale (lua/reserve.lua). */

import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { SaleClock } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import { coalesce } from "../stores/coalesce.ts";
import { ownFault } from "../stores/refused.ts";
import type { ReserveResult } from "../stores/replies.ts";

type Needs = Pick<Context, "config" | "sales" | "scripts">;

const BATCH_MAX = 128;
/** Per sale and process; at 20,000 a second this is half a second of waiting. */
const WAITING_MAX = 10_000;
const SWEEP_MAX = 128;
/** Under load a call then carries some thirty requests; alone, a request never waits (measured: bench/README.md). */
const ENOUGH = 32;
const GATHER_MS = 3;

export interface ReserveRequest {
  key: string;
  customerId: string;
  /** `sku:quantity,...` in order of sku. */
  lines: string;
}
export type Reserved = { result: ReserveResult; clock: SaleClock };

export type ReserveStage = ReturnType<typeof reserveStage>;

export function reserveStage(ctx: Needs) {
  const limits = { sweepMax: SWEEP_MAX, journalMax: ctx.config.journalMax };
  const bySale = new Map<string, (r: ReserveRequest) => Promise<Reserved>>();

  function ofSale(sale: Sale) {
    let reserve = bySale.get(sale.id);
    if (!reserve) {
      reserve = coalesce<ReserveRequest, Reserved>(
        async (batch) => {
          const answer = await around("reserve.redis", () =>
            ctx.sales.call(sale, (s) => ctx.scripts.reserve(s, limits, batch)),
          );
          return answer.results.map((result) => ({ result, clock: answer }));
        },
        { batchMax: BATCH_MAX, waitingMax: WAITING_MAX, enough: ENOUGH, gatherMs: GATHER_MS },
      );
      bySale.set(sale.id, reserve);
    }
    return reserve;
  }

  /** One result per request. Throws Unavailable (unknown: repeat with the same key) or Overloaded (nothing done). */
  return (sale: Sale, request: ReserveRequest): Promise<Reserved> => ofSale(sale)(request).catch(ownFault);
}
