/** What the API shows of sales, reservations and orders. */

import { hash } from "node:crypto";
import { eq, inArray, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { deadlineAt, type Hold, type SaleClock, seenNow } from "../domain/hold.ts";
import { orderIdOf, paymentIdOf } from "../domain/ids.ts";
import { cartOf, type Sale } from "../domain/sale.ts";
import { orderLines, orders } from "../stores/schema.ts";

/** The answers of a batch share their instants, so the last few are kept as text. */
const instants = Array.from({ length: 16 }, () => ({ ms: Number.NaN, text: "" }));
function iso(ms: number): string {
  const kept = instants[ms & 15] as (typeof instants)[number];
  if (kept.ms !== ms) [kept.ms, kept.text] = [ms, new Date(ms).toISOString()];
  return kept.text;
}
const SALE_VIEW_MS = 250;
/** Before a gateway was ever measured. */
const CALL_MS_GUESS = 1_000;

export type Availability = "available" | "all_held" | "sold_out";
/** Live units are held or paying, so some may come back; without any, every claim is captured. */
export const availabilityOf = (i: { free: number; live: number }): Availability =>
  i.free > 0 ? "available" : i.live > 0 ? "all_held" : "sold_out";

export function saleStatus(s: { nowMs: number; opensAtMs: number; closesAtMs: number; reserving: boolean }) {
  if (s.nowMs >= s.closesAtMs) return "closed";
  if (!s.reserving) return "paused";
  return s.nowMs < s.opensAtMs ? "scheduled" : "open";
}

async function saleBody(ctx: Pick<Context, "sales" | "scripts">, sale: Sale) {
  const a = await ctx.sales.call(sale, (s) => ctx.scripts.stock(s, [...sale.items.keys()]));
  const v = a.results;
  return {
    id: sale.id,
    name: sale.name,
    status: saleStatus({ nowMs: a.nowMs, opensAtMs: v.opensAtMs, closesAtMs: v.closesAtMs, reserving: v.reserving }),
    opensAt: iso(v.opensAtMs),
    closesAt: iso(v.closesAtMs),
    serverTime: iso(a.nowMs),
    currency: sale.currency,
    holdMs: sale.holdMs,
    maxUnitsPerCustomer: sale.maxUnitsPerCustomer,
    gateways: sale.gateways,
    shippingFee: sale.shippingFee,
    items: [...sale.items.values()].map((i) => {
      const units = v.items.get(i.sku) ?? { free: 0, live: 0 };
      return {
        sku: i.sku,
        name: i.name,
        unitPrice: i.unitPrice,
        availability: availabilityOf(units),
        free: units.free,
      };
    }),
    nextReleaseAt: v.nextDueMs > 0 ? iso(deadlineAt(v.nextDueMs, a)) : null,
  };
}

export interface SaleText {
  text: string;
  etag: string;
}

export type SaleViewer = ReturnType<typeof saleViewer>;

/** The sale's page, asked of Redis at most every 250 ms by this process, however many read it. */
export function saleViewer(ctx: Pick<Context, "sales" | "scripts">) {
  type Seen = { at: number; ready: SaleText | null; coming: Promise<SaleText> };
  const seen = new Map<string, Seen>();
  const young = (sale: Sale) => {
    const s = seen.get(sale.id);
    return s && performance.now() - s.at < SALE_VIEW_MS ? s : undefined;
  };
  async function make(sale: Sale): Promise<SaleText> {
    const text = JSON.stringify(await saleBody(ctx, sale));
    // serverTime moves with every reading and is no reason to send the page again.
    return { text, etag: `"${hash("sha1", text.replace(/"serverTime":"[^"]*"/, ""), "base64url")}"` };
  }
  return {
    /** The page if it is there already and young enough. */
    last: (sale: Sale): SaleText | null => young(sale)?.ready ?? null,
    fresh(sale: Sale): Promise<SaleText> {
      const s = young(sale);
      if (s) return s.coming;
      const next: Seen = { at: performance.now(), ready: null, coming: make(sale) };
      seen.set(sale.id, next);
      next.coming.then(
        (made) => {
          next.ready = made;
        },
        () => seen.get(sale.id) === next && seen.delete(sale.id),
      );
      return next.coming;
    },
  };
}

export type ReservationView = ReturnType<typeof bareReservation> & {
  payment?: { id: string; status: string; position?: number; etaMs?: number; actionUrl?: string; declineCode?: string };
  orderId?: string;
  recorded?: boolean;
};

/** Whether nothing more will happen to it. A confirmed one is final once its order is recorded. */
export const isFinal = (r: ReservationView): boolean =>
  (r.status === "confirmed" && r.recorded === true) || r.status === "released" || r.status === "expired";

/** What the hold alone tells; all there is to tell of one that never was paid for. */
export function bareReservation(ctx: Pick<Context, "ids">, sale: Sale, key: string, hold: Hold, clock: SaleClock) {
  const cart = cartOf(sale, hold.lines);
  return {
    id: ctx.ids.reservationId(sale.no, hold.customerId, key),
    saleId: sale.id,
    status: hold.state,
    lines: cart.shown,
    amount: cart.amount,
    currency: sale.currency,
    // Left out of the JSON when there is none.
    expiresAt: hold.state === "held" ? iso(deadlineAt(hold.deadlineMs, clock)) : undefined,
    serverTime: iso(clock.nowMs),
  };
}

type PaymentReads = Pick<Context, "reads" | "gates">;

/** Place and wait of a payment in line. */
async function queuedPart(
  ctx: PaymentReads,
  reference: string,
  gateway: string,
  place: number,
): Promise<NonNullable<ReservationView["payment"]>> {
  const { opensInMs, callMs } = await ctx.reads.line(gateway);
  const position = Math.max(1, place);
  const etaMs = opensInMs + Math.ceil(position / (ctx.gates.get(gateway)?.limit ?? 1)) * (callMs || CALL_MS_GUESS);
  return { id: paymentIdOf(reference), status: "queued", position, etaMs };
}

async function paymentPart(ctx: PaymentReads, hold: Hold): Promise<ReservationView["payment"]> {
  if (hold.reference === "" || (hold.state !== "held" && hold.state !== "paying")) return undefined;
  const p = await ctx.reads.payment(hold.reference);
  if (!p) return undefined;
  const id = paymentIdOf(p.reference);
  if (hold.state === "held")
    return p.state === "declined" ? { id, status: "declined", declineCode: p.declineCode ?? "declined" } : undefined;
  if (p.state === "queued")
    return queuedPart(ctx, p.reference, p.gateway, await ctx.reads.place(p.gateway, p.reference));
  if (p.state === "action_required") return { id, status: p.state, ...(p.actionUrl && { actionUrl: p.actionUrl }) };
  // Captured or ended and not yet told to Redis: still on its way.
  return { id, status: p.state === "unknown" ? "unknown" : "sending" };
}

/** A payment that this very call has put in line: nothing need be read. */
export async function viewBegun(
  ctx: PaymentReads & Pick<Context, "ids">,
  sale: Sale,
  key: string,
  hold: Hold,
  clock: SaleClock,
  begun: { gateway: string; place: number },
) {
  return {
    ...bareReservation(ctx, sale, key, hold, clock),
    payment: await queuedPart(ctx, hold.reference, begun.gateway, begun.place),
  };
}

/** Full view of a hold, with payment, place in the line and order. */
export async function viewReservation(
  ctx: PaymentReads & Pick<Context, "ids">,
  sale: Sale,
  key: string,
  stored: Hold,
  clock: SaleClock,
): Promise<ReservationView> {
  const hold = seenNow(stored, clock);
  const view: ReservationView = bareReservation(ctx, sale, key, hold, clock);
  const payment = await paymentPart(ctx, hold);
  if (payment) view.payment = payment;
  if (hold.state === "confirmed") {
    view.orderId = orderIdOf(hold.reference);
    view.recorded = await ctx.reads.recorded(view.orderId);
  }
  return view;
}

type OrderRow = typeof orders.$inferSelect;

export async function viewOrders(ctx: Pick<Context, "db">, rows: OrderRow[]) {
  const ids = rows.map((o) => o.id);
  const lines =
    ids.length === 0
      ? []
      : await ctx.db.select().from(orderLines).where(inArray(orderLines.orderId, ids)).orderBy(orderLines.sku);
  const linesOf = new Map<string, typeof lines>();
  for (const l of lines) linesOf.set(l.orderId, [...(linesOf.get(l.orderId) ?? []), l]);
  return rows.map((o) => ({
    id: o.id,
    reservationId: o.reservationId,
    saleId: o.saleId,
    customerId: o.customerId,
    status: o.status,
    lines: (linesOf.get(o.id) ?? []).map(({ sku, quantity, unitPrice, name }) => ({ sku, quantity, unitPrice, name })),
    amount: o.amount,
    currency: o.currency,
    payment: { gateway: o.gateway, reference: o.reference, chargeId: o.chargeId },
    contact: o.contact,
    shipTo: o.shipTo,
    confirmedAt: o.confirmedAt.toISOString(),
    recordedAt: o.recordedAt.toISOString(),
  }));
}

export async function findOrder(ctx: Pick<Context, "db">, orderId: string): Promise<OrderRow | undefined> {
  const [row] = await ctx.db.select().from(orders).where(eq(orders.id, orderId));
  return row;
}

export const newestFirst = sql`${orders.no} desc`;
