/** Operator routes. Each one that changes something leaves a row in the admin log. */

import { and, desc, eq, lt, sql } from "drizzle-orm";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { orderIdOf, referenceOfOrder } from "../domain/ids.ts";
import type { Sale } from "../domain/sale.ts";
import { auditSale } from "../recover/audit.ts";
import { noteDenied } from "../recover/denied.ts";
import { rebuildSale, settingsOf } from "../recover/rebuild.ts";
import { reconcileOnce } from "../recover/reconcile.ts";
import { topUp } from "../stages/top-up.ts";
import { adminLog, epochs, items, journalPositions, orders, payments, sales } from "../stores/schema.ts";
import { certificateAnswer } from "../web/certificate.tsx";
import { paymentRoutes } from "./admin-payments.ts";
import { headerOf, incomingOf, type Routes } from "./api.ts";
import type { AdminAuth } from "./auth.ts";
import * as contract from "./contract.ts";
import { check, checkIdempotencyKey } from "./contract.ts";
import type { InstantRefusals } from "./instant-refusals.ts";
import { ordersCsv } from "./orders-csv.ts";
import { invalid, Problem } from "./problem.ts";
import { makeLiveFigures, saleFigures } from "./sale-figures.ts";
import { findOrder, newestFirst, viewOrders } from "./views.ts";

/** 消費税 of what names no other rate. */
const JPY_TAX_PERCENT = 10;

interface Parts {
  auth: AdminAuth;
  instantRefusals: InstantRefusals;
  saleOf: (c: Http) => Promise<Sale>;
}

export function adminRoutes(ctx: Context, routes: Routes, { auth, instantRefusals, saleOf }: Parts): void {
  const { route, json, bodyOf } = routes;
  const liveFigures = makeLiveFigures(ctx);
  const admin = (c: Http) => auth.check(c.req.method, incomingOf(c).headers);
  const who = { tag: "Operator", who: "admin" } as const;

  async function note(action: string, saleId: string | null, detail: Record<string, unknown>): Promise<void> {
    liveFigures.booksMoved();
    await ctx.db.insert(adminLog).values({ action, saleId, detail });
    ctx.log.info({ action, saleId, ...detail }, "operator");
  }

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/sales",
      summary: "Create a sale",
      body: contract.saleBody,
      answers: {
        201: { description: "created", schema: contract.anyObject },
        200: { description: "the same was created before", schema: contract.anyObject },
      },
      problems: ["SALE_EXISTS"],
    },
    async (c) => {
      admin(c);
      const { sale, created } = await createSale(ctx, check(contract.saleBody, await bodyOf(c)));
      if (created) await note("create sale", sale.id, {});
      return json(c, created ? 201 : 200, await saleFigures(ctx, sale));
    },
  );

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/sales",
      summary: "All sales with their figures",
      answers: { 200: { description: "sales", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      return json(c, 200, { sales: await Promise.all((await ctx.sales.all()).map((s) => saleFigures(ctx, s))) });
    },
  );

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/sales/{saleId}",
      summary: "A sale with its figures",
      answers: { 200: { description: "the sale", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      return json(c, 200, await saleFigures(ctx, await saleOf(c)));
    },
  );

  route(
    {
      ...who,
      method: "patch",
      path: "/v1/admin/sales/{saleId}",
      summary: "Pause or resume reserving and paying, close, extend every live hold; correct names and texts",
      body: contract.patchBody,
      answers: { 200: { description: "the sale", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      const patch = check(contract.patchBody, await bodyOf(c));
      const sale = await saleOf(c);
      await patchSale(ctx, sale, patch);
      instantRefusals.forget(sale);
      await note("patch sale", sale.id, patch);
      return json(c, 200, await saleFigures(ctx, sale));
    },
  );

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/sales/{saleId}/items/{sku}/stock",
      summary: "Top-up: put units on sale, or take free ones away",
      headers: { "Idempotency-Key": "applied once per key" },
      body: contract.topUpBody,
      answers: { 200: { description: "the item's figures", schema: contract.anyObject } },
      problems: ["BELOW_COMMITTED", "IDEMPOTENCY_MISMATCH"],
    },
    async (c) => {
      admin(c);
      const idempotencyKey = checkIdempotencyKey(headerOf(incomingOf(c).headers, "idempotency-key"));
      const { delta, reason } = check(contract.topUpBody, await bodyOf(c));
      const sale = await saleOf(c);
      const sku = c.req.param("sku") ?? "";
      if (!sale.items.has(sku)) throw new Problem("NOT_FOUND", "this sale has no such item");
      const done = await topUp(ctx, sale, { sku, delta, reason, idempotencyKey });
      instantRefusals.forget(sale);
      if (done.outcome === "MISMATCH")
        throw new Problem("IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used for another change");
      if (done.outcome === "BELOW_COMMITTED")
        throw new Problem("BELOW_COMMITTED", `only ${done.free} units are free`, { free: done.free });
      if (!done.replayed) await note("top-up", sale.id, { sku, delta, reason });
      return json(c, 200, { ...done.counts, replayed: done.replayed });
    },
  );

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/sales/{saleId}/audit",
      summary: "The books; as text/html the certificate",
      answers: { 200: { description: "the books", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      const sale = await saleOf(c);
      const audit = await auditSale(ctx, sale.id, sale.no);
      await noteDenied(ctx, audit);
      if (!prefers(c, "text/html")) return json(c, 200, audit);
      // Asked for by a program, which keeps it as a file.
      return certificateAnswer(c, routes, sale, audit, { standalone: true });
    },
  );

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/sales/{saleId}/reconcile",
      summary: "Run reconcile now",
      answers: { 200: { description: "what it did", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      const sale = await saleOf(c);
      const done = await reconcileOnce(ctx, { walk: true });
      await note("reconcile", sale.id, { ...done });
      return json(c, 200, done);
    },
  );

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/orders",
      summary: "Orders, newest first; as text/csv one row a line",
      query: contract.ordersQuery,
      answers: { 200: { description: "orders", schema: contract.ordersView } },
      problems: ["INVALID_REQUEST"],
    },
    async (c) => {
      admin(c);
      const q = check(contract.ordersQuery, c.req.query());
      const before = cursorOf(q.cursor);
      const where = and(
        q.saleId === undefined ? undefined : eq(orders.saleId, q.saleId),
        before === null ? undefined : lt(orders.no, before),
      );
      if (q.format === "csv" || (q.format === undefined && prefers(c, "text/csv")))
        return ordersCsv(ctx, routes, c, where);
      const rows = await ctx.db
        .select()
        .from(orders)
        .where(where)
        .orderBy(newestFirst)
        .limit(q.limit + 1);
      const page = rows.slice(0, q.limit);
      const nextCursor = rows.length > q.limit ? Buffer.from(String(page.at(-1)?.no)).toString("base64url") : null;
      return json(c, 200, { orders: await viewOrders(ctx, page), nextCursor });
    },
  );

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/orders/{id}/refund",
      summary: "Refund an order, and put its units back on sale or not",
      body: contract.refundBody,
      answers: { 202: { description: "refunding, or refunded already", schema: contract.orderView } },
    },
    async (c) => {
      admin(c);
      const { reason, restock } = check(contract.refundBody, await bodyOf(c));
      const id = c.req.param("id") ?? "";
      const reference = referenceOfOrder(id);
      const order = reference && (await findOrder(ctx, orderIdOf(reference)));
      if (!reference || !order) throw new Problem("NOT_FOUND", "no such order");
      const begun = await around("refund.begin", () =>
        ctx.db.transaction(async (tx) => {
          const changed = await tx
            .update(orders)
            .set({ status: "refunding", refundReason: reason, restock })
            .where(and(eq(orders.id, id), eq(orders.status, "confirmed")))
            .returning({ id: orders.id });
          // Un-claimed and restocked only in the transaction that records the gateway's "refunded" (rule M).
          if (changed.length > 0)
            await tx
              .update(payments)
              .set({ state: "refunding", checkAt: sql`now()` })
              .where(and(eq(payments.reference, reference), eq(payments.state, "captured")));
          return changed.length > 0;
        }),
      );
      if (begun) await note("refund", order.saleId, { orderId: id, reason, restock });
      return json(c, 202, (await viewOrders(ctx, [(await findOrder(ctx, id)) ?? order]))[0]);
    },
  );

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/orders/{id}/mail",
      summary: "Send the order's confirmation mail once more, under a new message id",
      body: contract.resendBody,
      answers: { 202: { description: "queued", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      const { reason } = check(contract.resendBody, await bodyOf(c));
      const orderId = c.req.param("id") ?? "";
      const order = referenceOfOrder(orderId) ? await findOrder(ctx, orderId) : undefined;
      if (!order) throw new Problem("NOT_FOUND", "no such order");
      const [queued] = await ctx.db.execute<{ kind: string }>(sql`
        insert into outbox (order_id, kind, sale_id, language)
        select order_id, 'confirmation-' || count(*) + 1, min(sale_id), min(language) from outbox where order_id = ${orderId} group by order_id
        on conflict (order_id, kind) do nothing returning kind`);
      // Two operators at the same moment: the one mail is on its way.
      if (queued) await note("resend mail", order.saleId, { orderId, reason });
      ctx.work.emit("outbox");
      return json(c, 202, { orderId, queued: true });
    },
  );

  paymentRoutes(ctx, routes, { admin, note });

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/log",
      summary: "What operators did, newest first",
      query: contract.logQuery,
      answers: { 200: { description: "the trail", schema: contract.logView } },
      problems: ["INVALID_REQUEST"],
    },
    async (c) => {
      admin(c);
      const q = check(contract.logQuery, c.req.query());
      const rows = await ctx.db
        .select()
        .from(adminLog)
        .where(q.saleId === undefined ? undefined : eq(adminLog.saleId, q.saleId))
        .orderBy(desc(adminLog.id))
        .limit(q.limit);
      return json(c, 200, {
        entries: rows.map(({ at, action, saleId, detail }) => ({ at: at.toISOString(), action, saleId, detail })),
      });
    },
  );

  route(
    {
      ...who,
      method: "get",
      path: "/v1/admin/events",
      summary: "SaleFigures of all sales that have not been over for a week as server-sent events, once a second",
      answers: {
        200: {
          description:
            "`event: figures` once a second; before the first `event: history`, the last quarter of an hour; `event: books`, the audits, now and then",
          schema: contract.anyObject,
          type: "text/event-stream",
        },
      },
    },
    (c) => {
      admin(c);
      if (liveFigures.isFull()) throw new Problem("OVERLOADED", "too many watch already");
      return routes.events(c, async (stream, gone) => {
        for await (const { event, data } of liveFigures.watch(gone)) {
          await stream.writeSSE({ event, data: JSON.stringify(data) });
        }
      });
    },
  );
}

const prefers = (c: Http, type: string) =>
  (headerOf(incomingOf(c).headers, "accept") ?? "").split(",").some((part) => part.trim().startsWith(type));

function cursorOf(text: string | undefined): number | null {
  if (text === undefined) return null;
  const no = Buffer.from(text, "base64url").toString();
  if (!/^\d{1,15}$/.test(no)) throw invalid([{ path: "cursor", message: "must be the nextCursor of an answer" }]);
  return Number(no);
}

/** Idempotent by id and body: the same again answers the sale; another body is refused. */
export async function createSale(ctx: Context, body: contract.SaleBody): Promise<{ sale: Sale; created: boolean }> {
  const unknown = body.gateways?.filter((g) => !ctx.gateways.has(g)) ?? [];
  if (unknown.length > 0) throw invalid([{ path: "gateways", message: `not on offer here: ${unknown.join(", ")}` }]);
  const createdFrom = JSON.stringify(body, (_, v) =>
    v && typeof v === "object" && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v,
  );
  const created = await around("sale.rows", () =>
    ctx.db.transaction(async (tx) => {
      const [row] = await tx
        .insert(sales)
        .values({
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
        })
        .onConflictDoNothing()
        .returning();
      if (!row) {
        const [before] = await tx.select().from(sales).where(eq(sales.id, body.id));
        if (before?.createdFrom !== createdFrom)
          throw new Problem("SALE_EXISTS", `sale ${body.id} was created with other settings`);
        return false;
      }
      await tx
        .insert(items)
        .values(body.items.map(({ stock, ...i }, position) => ({ ...i, saleId: body.id, position, granted: stock })));
      await tx.insert(epochs).values({ saleId: body.id });
      await tx.insert(journalPositions).values({ saleId: body.id });
      return true;
    }),
  );
  ctx.sales.forgetUnknown(body.id);
  // Epoch 0 is no epoch yet: the first image of the sale is a rebuild like any other, also when a crash came between.
  await rebuildSale(ctx, body.id);
  return { sale: (await ctx.sales.refresh(body.id)) as Sale, created };
}

/** Postgres first, then Redis by version; a crash between is finished by reconcile. Hold clocks stop and shift on the sale's clock (lua/prelude.lua). */
async function patchSale(ctx: Context, sale: Sale, patch: contract.PatchBody): Promise<void> {
  const { nowMs } = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, []));
  const row = await around("patch.row", () =>
    ctx.db.transaction(async (tx) => {
      const [before] = await tx.select().from(sales).where(eq(sales.id, sale.id)).for("update");
      if (!before) throw new Problem("NOT_FOUND");
      if (patch.closesAt !== undefined && Date.parse(patch.closesAt) <= before.opensAt.getTime())
        throw invalid([{ path: "closesAt", message: "must be after opensAt" }]);
      let { pausedAtMs, shiftMs } = before;
      if (patch.paying === "off" && pausedAtMs === 0) pausedAtMs = nowMs;
      if (patch.paying === "on" && pausedAtMs > 0) {
        shiftMs += Math.max(0, nowMs - pausedAtMs);
        pausedAtMs = 0;
      }
      shiftMs += patch.extendHoldsMs ?? 0;
      for (const i of patch.items ?? []) {
        const [named] = await tx
          .update(items)
          .set({ name: i.name })
          .where(and(eq(items.saleId, sale.id), eq(items.sku, i.sku)))
          .returning();
        if (!named) throw invalid([{ path: "items", message: `this sale has no item ${i.sku}` }]);
      }
      const [after] = await tx
        .update(sales)
        .set({
          pausedAtMs,
          shiftMs,
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
        .where(eq(sales.id, sale.id))
        .returning();
      return after as typeof before;
    }),
  );
  await around("patch.redis", () =>
    ctx.sales.call(sale, (s) => ctx.scripts.configure(s, row.version, settingsOf(row))),
  );
  await ctx.sales.refresh(sale.id);
}
