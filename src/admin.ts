/** Operator routes. Each one that changes something leaves a row in the admin log. */
import { and, eq, gte, lt, sql } from "drizzle-orm";
import type { Context as Http } from "hono";
import { streamSSE } from "hono/streaming";
import { adminAuth } from "./auth.ts";
import type { Boards } from "./board.ts";
import type { Context } from "./context.ts";
import * as contract from "./contract.ts";
import { check, checkIdempotencyKey } from "./contract.ts";
import { around } from "./crash.ts";
import { orderIdOf, referenceOfOrder } from "./ids.ts";
import { invalid, Problem } from "./problem.ts";
import { auditSale } from "./recover/audit.ts";
import { rebuildSale, settingsOf } from "./recover/rebuild.ts";
import { reconcileOnce } from "./recover/reconcile.ts";
import { headerOf, incomingOf, type Routes } from "./routes.ts";
import type { Sale } from "./sales.ts";
import { adminLog, epochs, items, journalPositions, orders, payments, sales } from "./schema.ts";
import { topUp } from "./stages/topup.ts";
import { findOrder, newestFirst, saleStatus, viewOrders } from "./view.ts";
import { certificatePage } from "./web/certificate.ts";

const EVENTS_MS = 1_000;

export function adminRoutes(ctx: Context, routes: Routes, saleOf: (c: Http) => Promise<Sale>, boards: Boards): void {
  const { route, json, bodyOf } = routes;
  const authenticate = adminAuth(ctx.config.adminTokens);
  const admin = (c: Http) => authenticate(headerOf(incomingOf(c).headers, "authorization"));
  const who = { tag: "Operator", who: "admin" } as const;

  async function note(action: string, saleId: string | null, detail: Record<string, unknown>): Promise<void> {
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
      answers: { 201: { description: "created", schema: contract.anyObject }, 200: { description: "the same was created before", schema: contract.anyObject } },
      problems: ["SALE_EXISTS"],
    },
    async (c) => {
      admin(c);
      const { sale, created } = await createSale(ctx, check(contract.saleBody, await bodyOf(c)));
      if (created) await note("create sale", sale.id, {});
      return json(c, created ? 201 : 200, await figures(ctx, sale));
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
      return json(c, 200, { sales: await Promise.all((await ctx.sales.all()).map((s) => figures(ctx, s))) });
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
      return json(c, 200, await figures(ctx, await saleOf(c)));
    },
  );

  route(
    {
      ...who,
      method: "patch",
      path: "/v1/admin/sales/{saleId}",
      summary: "Pause or resume reserving and paying, close, extend every live hold",
      body: contract.patchBody,
      answers: { 200: { description: "the sale", schema: contract.anyObject } },
    },
    async (c) => {
      admin(c);
      const patch = check(contract.patchBody, await bodyOf(c));
      const sale = await saleOf(c);
      await patchSale(ctx, sale, patch);
      boards.forget(sale);
      await note("patch sale", sale.id, patch);
      return json(c, 200, await figures(ctx, sale));
    },
  );

  route(
    {
      ...who,
      method: "post",
      path: "/v1/admin/sales/{saleId}/items/{sku}/stock",
      summary: "Top-up: put units on sale, or take free ones away",
      headers: { "Idempotency-Key": "applied once per key" },
      body: contract.topupBody,
      answers: { 200: { description: "the item's figures", schema: contract.anyObject } },
      problems: ["BELOW_COMMITTED", "IDEMPOTENCY_MISMATCH"],
    },
    async (c) => {
      admin(c);
      const idempotencyKey = checkIdempotencyKey(headerOf(incomingOf(c).headers, "idempotency-key"));
      const { delta, reason } = check(contract.topupBody, await bodyOf(c));
      const sale = await saleOf(c);
      const sku = c.req.param("sku") ?? "";
      if (!sale.items.has(sku)) throw new Problem("NOT_FOUND", "this sale has no such item");
      const done = await topUp(ctx, sale, { sku, delta, reason, idempotencyKey });
      boards.forget(sale);
      if (done.outcome === "MISMATCH") throw new Problem("IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used for another change");
      if (done.outcome === "BELOW_COMMITTED") throw new Problem("BELOW_COMMITTED", `only ${done.free} units are free`, { free: done.free });
      if (!done.replayed) await note("top-up", sale.id, { sku, delta, reason });
      return json(c, 200, { ...done.figures, replayed: done.replayed });
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
      if (!prefers(c, "text/html")) return json(c, 200, audit);
      const csp = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
      return routes.send(c, 200, certificatePage(sale, audit), { "content-type": "text/html; charset=utf-8", "content-security-policy": csp });
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
      const where = and(q.saleId === undefined ? undefined : eq(orders.saleId, q.saleId), before === null ? undefined : lt(orders.no, before));
      if (prefers(c, "text/csv")) return ordersCsv(ctx, routes, c, where);
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
      method: "get",
      path: "/v1/admin/events",
      summary: "Figures of all sales as server-sent events, once a second",
      answers: { 200: { description: "`event: figures`", schema: contract.anyObject, type: "text/event-stream" } },
    },
    (c) => {
      admin(c);
      return streamSSE(c, async (stream) => {
        const gone = new AbortController();
        stream.onAbort(() => gone.abort());
        while (!gone.signal.aborted && !ctx.draining.aborted) {
          const all = await Promise.all((await ctx.sales.all()).map((s) => figures(ctx, s))).catch((error) => ({ unavailable: String(error.message) }));
          await stream.writeSSE({ event: "figures", data: JSON.stringify(Array.isArray(all) ? { sales: all } : all) });
          await stream.sleep(EVENTS_MS);
        }
      });
    },
  );
}

const prefers = (c: Http, type: string) => (headerOf(incomingOf(c).headers, "accept") ?? "").split(",").some((part) => part.trim().startsWith(type));

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
    v && typeof v === "object" && !Array.isArray(v) ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1))) : v,
  );
  const created = await around("sale.rows", () =>
    ctx.db.transaction(async (tx) => {
      const [row] = await tx
        .insert(sales)
        .values({
          ...{ id: body.id, name: body.name, currency: body.currency, language: body.language ?? null, holdMs: body.holdMs, createdFrom },
          ...{ opensAt: new Date(body.opensAt), closesAt: new Date(body.closesAt), maxUnitsPerCustomer: body.maxUnitsPerCustomer },
          ...{ gateways: body.gateways ?? ctx.config.gateways, shippingFee: body.shippingFee ?? 0 },
        })
        .onConflictDoNothing()
        .returning();
      if (!row) {
        const [before] = await tx.select().from(sales).where(eq(sales.id, body.id));
        if (before?.createdFrom !== createdFrom) throw new Problem("SALE_EXISTS", `sale ${body.id} was created with other settings`);
        return false;
      }
      await tx
        .insert(items)
        .values(body.items.map((i, position) => ({ saleId: body.id, sku: i.sku, position, name: i.name, unitPrice: i.unitPrice, granted: i.stock })));
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

type Patch = { reserving?: "on" | "off" | undefined; paying?: "on" | "off" | undefined; closesAt?: string | undefined; extendHoldsMs?: number | undefined };

/** Postgres first, then Redis by version; a crash between is finished by reconcile. Hold clocks stop and shift on the sale's clock (lua/prelude.lua). */
async function patchSale(ctx: Context, sale: Sale, patch: Patch): Promise<void> {
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
      const [after] = await tx
        .update(sales)
        .set({
          ...{ pausedAtMs, shiftMs, version: before.version + 1 },
          ...(patch.reserving && { reserving: patch.reserving === "on" }),
          ...(patch.closesAt && { closesAt: new Date(patch.closesAt) }),
        })
        .where(eq(sales.id, sale.id))
        .returning();
      return after as typeof before;
    }),
  );
  await around("patch.redis", () => ctx.sales.call(sale, (s) => ctx.scripts.configure(s, row.version, settingsOf(row))));
  await ctx.sales.refresh(sale.id);
}

/** A sale as operators see it: settings, units, gates, journal and outbox. */
export async function figures(ctx: Context, sale: Sale) {
  const a = await ctx.sales.call(sale, (s) => ctx.scripts.stock(s, [...sale.items.keys()]));
  const rows = await ctx.db.execute<{ sku: string; granted: number; claimed: number; claimed_live: number; sold: number }>(sql`
    select i.sku, i.granted, i.claimed,
      coalesce((select sum(l.quantity) from order_lines l join orders o on o.id = l.order_id
        where l.sale_id = i.sale_id and l.sku = i.sku and o.status <> 'refunded'), 0)::int as sold,
      coalesce((select sum((l ->> 'quantity')::int) from payments p, jsonb_array_elements(p.lines) l
        where p.sale_id = i.sale_id and p.claimed and p.state in ('sending', 'action_required', 'unknown') and l ->> 'sku' = i.sku), 0)::int as claimed_live
    from items i where i.sale_id = ${sale.id} order by i.position`);
  const [mails] = await ctx.db.execute<{ queued: number; sent: number; failed: number }>(sql`
    select count(*) filter (where state = 'queued')::int as queued, count(*) filter (where state = 'sent')::int as sent, count(*) filter (where state = 'failed')::int as failed
    from outbox where sale_id = ${sale.id}`);
  const [open] = await ctx.db.execute<{ queued: number; sending: number; action_required: number; unknown: number; refunding: number; attention: number }>(sql`
    select count(*) filter (where state = 'queued')::int as queued, count(*) filter (where state = 'sending')::int as sending,
      count(*) filter (where state = 'action_required')::int as action_required, count(*) filter (where state = 'unknown')::int as unknown,
      count(*) filter (where state = 'refunding')::int as refunding, count(*) filter (where attention is not null)::int as attention
    from payments where sale_id = ${sale.id}`);
  const v = a.results;
  const gates = await Promise.all(
    [...ctx.gates.values()].map(async (g) => {
      const view = await ctx.scripts.gateView(g.gateway);
      return { gateway: g.gateway, limit: g.limit, inFlight: view.inFlight, line: view.line, callMs: view.callMs, opensInMs: view.opensInMs };
    }),
  );
  return {
    id: sale.id,
    name: sale.name,
    status: saleStatus({ nowMs: a.nowMs, opensAtMs: v.opensAtMs, closesAtMs: v.closesAtMs, reserving: v.reserving }),
    ...{
      currency: sale.currency,
      holdMs: sale.holdMs,
      maxUnitsPerCustomer: sale.maxUnitsPerCustomer,
      gateways: sale.gateways,
      shippingFee: sale.shippingFee,
      language: sale.language,
    },
    opensAt: new Date(v.opensAtMs).toISOString(),
    closesAt: new Date(v.closesAtMs).toISOString(),
    serverTime: new Date(a.nowMs).toISOString(),
    reserving: v.reserving ? "on" : "off",
    paying: a.pausedAtMs > 0 ? "off" : "on",
    epoch: sale.epoch,
    items: rows.map((r) => {
      const item = sale.items.get(r.sku);
      const units = v.items.get(r.sku) ?? { free: 0, live: 0 };
      // Live in Redis less those whose units are already claimed in Postgres; the audit reads more carefully.
      return {
        sku: r.sku,
        name: item?.name,
        unitPrice: item?.unitPrice,
        granted: r.granted,
        free: units.free,
        held: units.live - r.claimed_live,
        claimed: r.claimed,
        sold: r.sold,
      };
    }),
    holds: { held: v.heldHolds, paying: v.payingHolds },
    gates,
    payments: open,
    journal: { length: v.journalLength },
    outbox: mails,
  };
}

/** Makes a cell harmless to spreadsheets (formulas) and quotes it. */
export function csvCell(value: string | number | null | undefined): string {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const CSV_PAGE = 500;
const CSV_COLUMNS = [
  "order_id",
  "reservation_id",
  "sale_id",
  "customer_id",
  "status",
  "sku",
  "item",
  "quantity",
  "unit_price",
  "order_amount",
  "currency",
  "gateway",
  "reference",
  "charge_id",
  "name",
  "email",
  "phone",
  "postal_code",
  "address",
  "confirmed_at",
  "recorded_at",
];

/** All orders as CSV, streamed page by page: UTF-8 with BOM, one row a line. */
function ordersCsv(ctx: Context, routes: Routes, c: Http, where: ReturnType<typeof and>): Response {
  const encoder = new TextEncoder();
  let before: number | null = null;
  let begun = false;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      if (!begun) {
        begun = true;
        controller.enqueue(encoder.encode(`\uFEFF${CSV_COLUMNS.join(",")}\r\n`));
      }
      const rows = await ctx.db
        .select()
        .from(orders)
        .where(and(where, before === null ? gte(orders.no, 0) : lt(orders.no, before)))
        .orderBy(newestFirst)
        .limit(CSV_PAGE);
      before = rows.at(-1)?.no ?? null;
      const text = (await viewOrders(ctx, rows)).flatMap((o) =>
        o.lines.map((l) =>
          [
            ...[o.id, o.reservationId, o.saleId, o.customerId, o.status, l.sku, l.name, l.quantity, l.unitPrice, o.amount, o.currency],
            ...[o.payment.gateway, o.payment.reference, o.payment.chargeId, o.contact.name, o.contact.email, o.contact.phone],
            ...[o.shipTo?.postalCode, o.shipTo?.address, o.confirmedAt, o.recordedAt],
          ]
            .map(csvCell)
            .join(","),
        ),
      );
      if (text.length > 0) controller.enqueue(encoder.encode(`${text.join("\r\n")}\r\n`));
      if (rows.length < CSV_PAGE) controller.close();
    },
  });
  return routes.send(c, 200, body as unknown as string, {
    "content-type": "text/csv; charset=utf-8",
    "content-disposition": 'attachment; filename="orders.csv"',
  });
}
