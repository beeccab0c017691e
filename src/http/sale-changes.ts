/** What operators change of a sale: Postgres first, then Redis. A crash between is finished by reconcile. */
import { and, eq } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { Sale } from "../domain/sale.ts";
import { rebuildSale, settingsOf } from "../recover/rebuild.ts";
import type { Db } from "../stores/postgres.ts";
import { epochs, items, journalPositions, sales } from "../stores/schema.ts";
import type { PatchBody, SaleBody } from "./contract.ts";
import { invalid, Problem } from "./problem.ts";

/** 消費税 of what names no other rate. */
const JPY_TAX_PERCENT = 10;

type Transaction = Parameters<Parameters<Db["transaction"]>[0]>[0];
type SaleRow = typeof sales.$inferSelect;

/** Idempotent by id and body: the same again answers the sale; another body is refused. */
export async function createSale(ctx: Context, body: SaleBody): Promise<{ sale: Sale; created: boolean }> {
  const unknown = body.gateways?.filter((g) => !ctx.gateways.has(g)) ?? [];
  if (unknown.length > 0) throw invalid([{ path: "gateways", message: `not on offer here: ${unknown.join(", ")}` }]);
  const created = await around("sale.rows", () => ctx.db.transaction((tx) => insertSale(ctx, tx, body)));
  ctx.sales.forgetUnknown(body.id);
  // Epoch 0 is no epoch yet: the first image of the sale is a rebuild like any other, also when a crash came between.
  await rebuildSale(ctx, body.id);
  return { sale: (await ctx.sales.refresh(body.id)) as Sale, created };
}

/** The body in one spelling, whatever the order of its fields. */
const inOneOrder = (body: SaleBody): string =>
  JSON.stringify(body, (_, v) =>
    v && typeof v === "object" && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v,
  );

/** False when the same was there before. */
async function insertSale(ctx: Pick<Context, "config">, tx: Transaction, body: SaleBody): Promise<boolean> {
  const createdFrom = inOneOrder(body);
  const row: typeof sales.$inferInsert = {
    id: body.id,
    name: body.name,
    currency: body.currency,
    language: body.language ?? null,
    holdMs: body.holdMs,
    createdFrom,
    opensAt: new Date(body.opensAt),
    closesAt: new Date(body.closesAt),
    maxUnitsPerCustomer: body.maxUnitsPerCustomer,
    gateways: body.gateways ?? ctx.config.gateways,
    shippingFee: body.shippingFee ?? 0,
    details: {
      shop: body.shop,
      terms: body.terms,
      taxPercent: body.taxPercent ?? (body.currency === "JPY" ? JPY_TAX_PERCENT : 0),
    },
  };
  const inserted = await tx.insert(sales).values(row).onConflictDoNothing().returning({ id: sales.id });
  if (inserted.length === 0) {
    const [before] = await tx.select().from(sales).where(eq(sales.id, body.id));
    if (before?.createdFrom === createdFrom) return false;
    throw new Problem("SALE_EXISTS", `sale ${body.id} was created with other settings`);
  }
  const itemRows = body.items.map(({ stock, ...i }, position) => ({
    ...i,
    saleId: body.id,
    position,
    granted: stock,
  }));
  await tx.insert(items).values(itemRows);
  await tx.insert(epochs).values({ saleId: body.id });
  await tx.insert(journalPositions).values({ saleId: body.id });
  return true;
}

/** Redis takes settings by their version. Hold clocks stop and shift on the sale's clock (lua/prelude.lua). */
export async function patchSale(ctx: Context, sale: Sale, patch: PatchBody): Promise<void> {
  const { nowMs } = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, []));
  const row = await around("patch.row", () => ctx.db.transaction((tx) => updateSale(tx, sale.id, patch, nowMs)));
  await around("patch.redis", () =>
    ctx.sales.call(sale, (s) => ctx.scripts.configure(s, row.version, settingsOf(row))),
  );
  await ctx.sales.refresh(sale.id);
}

async function updateSale(tx: Transaction, saleId: string, patch: PatchBody, nowMs: number): Promise<SaleRow> {
  const [before] = await tx.select().from(sales).where(eq(sales.id, saleId)).for("update");
  if (!before) throw new Problem("NOT_FOUND");
  if (patch.closesAt !== undefined && Date.parse(patch.closesAt) <= before.opensAt.getTime())
    throw invalid([{ path: "closesAt", message: "must be after opensAt" }]);
  await renameItems(tx, saleId, patch.items ?? []);
  const [after] = await tx
    .update(sales)
    .set({
      ...clockAfter(before, patch, nowMs),
      version: before.version + 1,
      ...(patch.reserving && { reserving: patch.reserving === "on" }),
      ...(patch.closesAt && { closesAt: new Date(patch.closesAt) }),
      ...(patch.name !== undefined && { name: patch.name }),
      details: {
        ...before.details,
        ...(patch.shop && { shop: patch.shop }),
        ...(patch.terms && { terms: patch.terms }),
      },
    })
    .where(eq(sales.id, saleId))
    .returning();
  return after as SaleRow;
}

/** While paying is off the clock of the holds stands; on again, every deadline moves by as long as it stood. */
function clockAfter(
  before: Pick<SaleRow, "pausedAtMs" | "shiftMs">,
  patch: PatchBody,
  nowMs: number,
): { pausedAtMs: number; shiftMs: number } {
  let { pausedAtMs, shiftMs } = before;
  if (patch.paying === "off" && pausedAtMs === 0) pausedAtMs = nowMs;
  if (patch.paying === "on" && pausedAtMs > 0) {
    shiftMs += Math.max(0, nowMs - pausedAtMs);
    pausedAtMs = 0;
  }
  return { pausedAtMs, shiftMs: shiftMs + (patch.extendHoldsMs ?? 0) };
}

async function renameItems(
  tx: Transaction,
  saleId: string,
  named: Array<{ sku: string; name: string }>,
): Promise<void> {
  for (const { sku, name } of named) {
    const [renamed] = await tx
      .update(items)
      .set({ name })
      .where(and(eq(items.saleId, saleId), eq(items.sku, sku)))
      .returning({ sku: items.sku });
    if (!renamed) throw invalid([{ path: "items", message: `this sale has no item ${sku}` }]);
  }
}
