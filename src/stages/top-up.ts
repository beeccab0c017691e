/**
 * top-up: stock put on sale or taken away, once per idempotency key, never below what is held or claimed. More:
 * Postgres first, then Redis by the move's id (rule K). Less: Redis gives up free units first, then Postgres lowers
 * `granted`, and only in the epoch in which Redis gave them up (rule L). A crash between is finished by reconcile.
 */

import { and, eq, sql } from "drizzle-orm";
import { nanoid } from "nanoid";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { NotStorable } from "../domain/errors.ts";
import type { Sale } from "../domain/sale.ts";
import { refusalOf } from "../stores/refused.ts";
import { epochs, items, stockMoves } from "../stores/schema.ts";

type Needs = Pick<Context, "db" | "metrics" | "sales" | "scripts">;

type StockMove = typeof stockMoves.$inferSelect;
export interface ItemCounts {
  sku: string;
  delta: number;
  granted: number;
  free: number;
  held: number;
  claimed: number;
}
export type ToppedUp =
  | { outcome: "DONE"; counts: ItemCounts; replayed: boolean }
  | { outcome: "BELOW_COMMITTED"; free: number }
  | { outcome: "MISMATCH" };

export async function topUp(
  ctx: Needs,
  sale: Sale,
  r: { sku: string; delta: number; reason: string; idempotencyKey: string },
): Promise<ToppedUp> {
  const id = `mv_${nanoid()}`;
  const { move, replayed } = await around("top-up.row", () =>
    ctx.db.transaction(async (tx) => {
      const row = {
        id,
        saleId: sale.id,
        sku: r.sku,
        delta: r.delta,
        reason: r.reason,
        idempotencyKey: r.idempotencyKey,
        state: r.delta > 0 ? ("granted" as const) : ("pending" as const),
      };
      const [inserted] = await tx.insert(stockMoves).values(row).onConflictDoNothing().returning();
      if (!inserted) {
        const [before] = await tx
          .select()
          .from(stockMoves)
          .where(and(eq(stockMoves.saleId, sale.id), eq(stockMoves.idempotencyKey, r.idempotencyKey)));
        return { move: before as StockMove, replayed: true };
      }
      if (r.delta > 0) await grant(tx, sale.id, r.sku, r.delta).catch(tooMany);
      return { move: inserted, replayed: false };
    }),
  );
  if (move.sku !== r.sku || move.delta !== r.delta) return { outcome: "MISMATCH" };
  return { ...(await finishMove(ctx, sale, move)), replayed } as ToppedUp;
}

/** More than an item's figures can count. */
function tooMany(error: unknown): never {
  if (refusalOf(error) !== "value") throw error;
  throw new NotStorable("delta", "would put more units on sale than an item can have");
}

type Queryable = Pick<Context["db"], "update">;
async function grant(db: Queryable, saleId: string, sku: string, delta: number) {
  await db
    .update(items)
    .set({ granted: sql`${items.granted} + ${delta}` })
    .where(and(eq(items.saleId, saleId), eq(items.sku, sku)));
}

/** Brings a move to its end from wherever it stands. Safe to repeat, in any number. */
export async function finishMove(
  ctx: Needs,
  sale: Sale,
  move: StockMove,
): Promise<{ outcome: "DONE"; counts: ItemCounts } | { outcome: "BELOW_COMMITTED"; free: number }> {
  if (move.state === "done") return { outcome: "DONE", counts: move.result as unknown as ItemCounts };
  if (move.state === "refused") return { outcome: "BELOW_COMMITTED", free: Number(move.result?.free ?? 0) };
  // Rule L: the epoch in which Redis gives the units up must still stand when Postgres lowers `granted`.
  let epoch = 0;
  const { results } = await around("top-up.redis", () =>
    ctx.sales.call(sale, (s) => {
      epoch = s.epoch;
      return ctx.scripts.topUp(s, {
        id: move.id,
        sku: move.sku,
        delta: move.delta,
        customerId: move.customerId ?? "",
        units: move.customerUnits,
      });
    }),
  );
  const applied = results[0];
  if (!applied || applied.outcome === "UNKNOWN_SKU") throw new Error(`Redis does not know ${move.sku} of ${sale.id}`);
  if (applied.outcome === "BELOW") {
    await ctx.db
      .update(stockMoves)
      .set({ state: "refused", result: { free: applied.free } })
      .where(and(eq(stockMoves.id, move.id), eq(stockMoves.state, "pending")));
  } else {
    await around("top-up.done", () =>
      ctx.db.transaction(async (tx) => {
        const [row] = await tx
          .select({ state: stockMoves.state })
          .from(stockMoves)
          .where(eq(stockMoves.id, move.id))
          .for("update");
        if (row?.state === "pending") {
          const [stands] = await tx
            .select({ epoch: epochs.epoch })
            .from(epochs)
            .where(eq(epochs.saleId, sale.id))
            .for("share");
          if (stands?.epoch !== epoch) return; // Redis was replaced: the units are to be taken again
          await grant(tx, sale.id, move.sku, move.delta);
        }
        const [item] = await tx
          .select()
          .from(items)
          .where(and(eq(items.saleId, sale.id), eq(items.sku, move.sku)));
        if (!item || (row?.state !== "pending" && row?.state !== "granted")) return;
        const counts = {
          sku: move.sku,
          delta: move.delta,
          granted: item.granted,
          free: applied.free,
          held: item.granted - applied.free - item.claimed,
          claimed: item.claimed,
        };
        await tx.update(stockMoves).set({ state: "done", result: counts }).where(eq(stockMoves.id, move.id));
      }),
    );
    ctx.metrics.outcomes.inc({ stage: "top-up", outcome: applied.outcome });
  }
  const [now] = await ctx.db.select().from(stockMoves).where(eq(stockMoves.id, move.id));
  return finishMove(ctx, sale, now as StockMove);
}
