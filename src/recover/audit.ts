/**
 * audit: the books of a sale over Redis, Postgres, the gateway's own ledger and the outbox. It reads by its own
 * statements, not through the code it checks. Two stores cannot be read at one instant: a reading counts only when
 * Postgres was the same before and after Redis was read, and a difference stands only if it is there again.
 */

import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { Unavailable } from "../domain/errors.ts";
import { saleNoOfReservation } from "../domain/ids.ts";
import type { ListedCharge } from "../gateways/port.ts";
import { CAPTURED_LATE, DENIED, HONOURED } from "../payments/rows.ts";
import { saleKeys } from "../stores/keys.ts";
import { orderOfPayment } from "../stores/schema.ts";
import { KNOWN_STATUSES, type Ledger, ledgerOf } from "./ledger.ts";

const READINGS_MAX = 8;
const READ_AGAIN_MS = 150;
const ATTENTION_SHOWN = 100;

export interface AuditItem {
  sku: string;
  name: string;
  granted: number;
  free: number;
  held: number;
  claimed: number;
  sold: number;
  difference: number;
  /** granted = opening stock + top-ups; claimed = sold + in payment + refunded and not put back. */
  opening: number;
  toppedUp: number;
  inPayment: number;
  notPutBack: number;
  /** Refunded and put back on sale: among the free ones again. */
  putBack: number;
}
/**
 * A payment on which a person has to decide: the cockpit and `POST /v1/admin/payments/{reference}/settle` have the ways
 * out.
 */
export interface NeedsPerson {
  reference: string;
  why: string;
  since: string;
  state: string;
}
export interface Audit {
  saleId: string;
  at: string;
  ok: boolean;
  /** Why the sale stands until a person has looked; null while it sells (restored.ts). */
  stoppedWhy: string | null;
  items: AuditItem[];
  charges: {
    captured: number;
    refunded: number;
    withoutOrder: number;
    /** Of those without an order: Postgres has never heard of them (`fukubukuro recover`). */
    liabilities: number;
    twice: number;
    /** Captured with another amount or currency than we asked for, and accepted by nobody. */
    amountDiffers: number;
    /** Refunded at the gateway without our asking for it. */
    refundedUnasked: number;
    /** In a state of the gateway's that we do not know. */
    odd: number;
    /** Differences that a person looked at and accepted. */
    accepted: number;
  };
  orders: { recorded: number; withoutCharge: number };
  mails: { queued: number; sent: number; failed: number; withoutOrder: number };
  open: { paying: number; unknown: number; journalLag: number; refunding: number; attention: number };
  /** The longest waiting first, the first hundred. */
  attention: NeedsPerson[];
  /** Records of the gateways' lists that cannot be read, of whichever sale. */
  unreadable: number;
}

type ItemRow = {
  sku: string;
  name: string;
  granted: number;
  claimed: number;
  sold: number;
  topped_up: number;
  in_payment: number;
  not_put_back: number;
  put_back: number;
};
type PaymentRow = {
  reference: string;
  reservation_key: string;
  state: string;
  claimed: boolean;
  amount: string;
  currency: string;
  attention: string | null;
  since: string;
  accepted: boolean;
};
type OrderRow = {
  reference: string;
  status: string;
  amount: string;
  currency: string;
  gateway: string;
  /** The gateway's list as it was read may not have its charge yet. */
  young: boolean;
};

/** The items, and a mark that any change of any payment moves. */
async function readCounts(ctx: Context, saleId: string) {
  const items = await ctx.db.execute<ItemRow>(sql`
    with ordered as (
      select l.sku, sum(l.quantity) filter (where o.status <> 'refunded') as sold,
        sum(l.quantity) filter (where o.status = 'refunded' and not o.restock) as not_put_back,
        sum(l.quantity) filter (where o.status = 'refunded' and o.restock) as put_back
      from orders o join order_lines l on l.order_id = o.id where o.sale_id = ${saleId} group by l.sku
    ), moved as (
      select sku, sum(delta) as topped_up from stock_moves
      where sale_id = ${saleId} and order_id is null and state in ('done', 'granted') group by sku
    ), unordered as (
      select l ->> 'sku' as sku, sum((l ->> 'quantity')::int) as in_payment
      from payments left join orders on ${orderOfPayment} cross join jsonb_array_elements(payments.lines) l
      where payments.sale_id = ${saleId} and claimed and orders.id is null group by 1
    )
    select i.sku, i.name, i.granted, i.claimed, coalesce(sold, 0)::int as sold,
      coalesce(not_put_back, 0)::int as not_put_back, coalesce(put_back, 0)::int as put_back,
      coalesce(topped_up, 0)::int as topped_up, coalesce(in_payment, 0)::int as in_payment
    from items i left join ordered using (sku) left join moved using (sku) left join unordered using (sku)
    where i.sale_id = ${saleId} order by i.position`);
  const [payments] = await ctx.db.execute<{ mark: string }>(sql`
    select count(*) || ' ' || coalesce(sum(hashtextextended(reference || state || claimed, 0)), 0) as mark
    from payments where sale_id = ${saleId}`);
  return { items: [...items], mark: payments?.mark };
}

async function readRedis(ctx: Context, saleId: string) {
  const keys = saleKeys(saleId);
  const [, free, live, holds, , paying] = keys.transitionKeys as [string, string, string, string, string, string];
  const replies = await ctx.redis.client
    .multi()
    .hgetall(free)
    .hgetall(live)
    .zrange(paying, "0", "-1")
    .xlen(keys.journal)
    .exec();
  const [freeUnits, liveUnits, payingKeys, journalLag] = (replies ?? []).map(([error, value]) => {
    if (error) throw error;
    return value;
  }) as [Record<string, string>, Record<string, string>, string[], number];
  // A paying hold's lines never change, so reading them after the figures is as good.
  const packed = payingKeys.length > 0 ? await ctx.redis.client.hmget(holds, ...payingKeys) : [];
  const lines = new Map(payingKeys.map((key, i) => [key, packed[i]?.split("|")[3] ?? ""]));
  return { free: freeUnits, live: liveUnits, paying: lines, journalLag };
}

/** The lists of all gateways. */
async function chargesOf(ctx: Context, ageMsMax: number): Promise<Omit<Ledger, "beganAt">> {
  const ledgers = await Promise.all([...ctx.gateways.values()].map((g) => ledgerOf(ctx, g, ageMsMax)));
  return {
    charges: ledgers.flatMap((l) => l.charges),
    odd: ledgers.reduce((sum, l) => sum + l.odd, 0),
    asOf: ledgers.map((l) => l.asOf).sort()[0] ?? "infinity",
  };
}

const UNSETTLED = ["sending", "action_required", "unknown"];
/** Notes of what was done; and the mark of a former reading, which this one judges anew. */
const isNote = (why: string) => [HONOURED, CAPTURED_LATE, DENIED].includes(why);
const differs = (c: ListedCharge, p: { amount: string; currency: string }) =>
  c.amount !== Number(p.amount) || c.currency !== p.currency;

/** What the gateways' lists say of this sale's charges, compared with payments and orders. */
function compareCharges(saleNo: number, listedCharges: ListedCharge[], payments: PaymentRow[], orders: OrderRow[]) {
  const paymentOf = new Map(payments.map((p) => [p.reference, p]));
  const orderOf = new Map(orders.map((o) => [o.reference, o]));
  const ofSale = listedCharges.filter(
    (c) => paymentOf.has(c.reference) || orderOf.has(c.reference) || saleNoOfReservation(c.reservationId) === saleNo,
  );
  const captured = ofSale.filter((c) => c.status === "captured");
  const capturedOf = new Map(captured.map((c) => [c.reference, c]));
  const perReservation = new Map<string, number>();
  for (const c of captured) perReservation.set(c.reservationId, (perReservation.get(c.reservationId) ?? 0) + 1);
  // While the gateway's answer is still being asked for, the charge is open, not lost.
  const stateOf = (reference: string) => paymentOf.get(reference)?.state ?? "";
  const isOpen = (reference: string) => [...UNSETTLED, "refunding"].includes(stateOf(reference));
  const isAccepted = (reference: string) => paymentOf.get(reference)?.accepted === true;
  const live = orders.filter((o) => o.status !== "refunded");
  const wrongOrders = live.filter((o) => {
    const c = capturedOf.get(o.reference);
    return c !== undefined && differs(c, o) && !isAccepted(o.reference);
  });
  const wrongPayments = captured.filter((c) => {
    const p = paymentOf.get(c.reference);
    return p !== undefined && UNSETTLED.includes(p.state) && differs(c, p);
  });
  const denied = live.filter(
    (o) =>
      o.gateway !== "cod" &&
      o.status === "confirmed" &&
      !o.young &&
      !capturedOf.has(o.reference) &&
      !isAccepted(o.reference),
  );
  const refundedUnasked = ofSale.filter(
    (c) =>
      c.status === "refunded" && [...UNSETTLED, "captured"].includes(stateOf(c.reference)) && !isAccepted(c.reference),
  );
  const isExplained = (c: ListedCharge) => paymentOf.has(c.reference) || orderOf.has(c.reference);
  return {
    denied,
    unexplained: captured.filter((c) => !isExplained(c)).map((c) => c.reference),
    charges: {
      captured: captured.length,
      refunded: ofSale.filter((c) => c.status === "refunded").length,
      withoutOrder: captured.filter((c) => !orderOf.has(c.reference) && !isOpen(c.reference)).length,
      twice: [...perReservation.values()].filter((n) => n > 1).length,
      amountDiffers: wrongOrders.length + wrongPayments.length,
      refundedUnasked: refundedUnasked.length,
      odd: ofSale.filter((c) => !KNOWN_STATUSES.includes(c.status)).length,
      accepted: payments.filter((p) => p.accepted).length,
    },
    listed: new Map(ofSale.map((c) => [c.reference, c.status])),
  };
}

/** How many of these references Postgres has never heard of: not even as a payment that ended unpaid. */
async function unheardOf(ctx: Context, references: string[]): Promise<number> {
  if (references.length === 0) return 0;
  const [row] = await ctx.db.execute<{ known: number }>(sql`
    select count(*)::int as known from payments
    where reference in (select json_array_elements_text(${JSON.stringify(references)}::json))`);
  return references.length - (row?.known ?? 0);
}

/** Payments that wait for a person, and orders whose charge the gateway's list denies, the longest waiting first. */
function whoNeedsPerson(payments: PaymentRow[], denied: OrderRow[], listed: Map<string, string>): NeedsPerson[] {
  const found = new Map<string, NeedsPerson>();
  for (const { reference, attention, since, state } of payments)
    if (attention !== null && !isNote(attention) && state !== "refunded")
      found.set(reference, { reference, why: attention, since: new Date(since).toISOString(), state });
  const sinceOf = new Map(payments.map((p) => [p.reference, p.since]));
  for (const { reference } of denied) {
    if (found.has(reference)) continue;
    const said = listed.get(reference);
    const why = `the order stands, and the gateway's list ${said === undefined ? "does not have its charge" : `says ${said}`}`;
    const since = new Date(sinceOf.get(reference) ?? Date.now()).toISOString();
    found.set(reference, { reference, why, since, state: "captured" });
  }
  return [...found.values()].sort((a, b) => (a.since < b.since ? -1 : 1));
}

async function readOnce(ctx: Context, saleId: string, saleNo: number, ageMsMax: number) {
  const ledger = await chargesOf(ctx, ageMsMax);
  const before = await readCounts(ctx, saleId);
  const redis = await readRedis(ctx, saleId).catch((error) => {
    throw new Unavailable("Redis cannot be read", 2000, { cause: error });
  });
  const payments = await ctx.db.execute<PaymentRow>(sql`
    select reference, reservation_key, state, claimed, amount, currency, attention,
      coalesce(troubled_since, captured_at, sent_at, queued_at) as since,
      coalesce(settled ->> 'action' = 'accept', false) as accepted
    from payments where sale_id = ${saleId} and state not in ('declined', 'cancelled')`);
  const orders = await ctx.db.execute<OrderRow>(sql`
    select reference, status, amount, currency, gateway, confirmed_at > ${ledger.asOf}::timestamptz as young
    from orders where sale_id = ${saleId}`);
  const [mail] = await ctx.db.execute<{ queued: number; sent: number; failed: number; without_order: number }>(sql`
    select count(*) filter (where b.state = 'queued')::int as queued,
      count(*) filter (where b.state = 'sent')::int as sent, count(*) filter (where b.state = 'failed')::int as failed,
      count(*) filter (where o.id is null)::int as without_order
    from outbox b left join orders o on o.id = b.order_id where b.sale_id = ${saleId}`);
  const { items, mark } = await readCounts(ctx, saleId);
  const [stands] = await ctx.db.execute<{ stopped_why: string | null }>(
    sql`select stopped_why from epochs where sale_id = ${saleId}`,
  );
  const stoppedWhy = stands?.stopped_why ?? null;
  const aside = await ctx.db.execute<{ reference: string }>(
    sql`select reference from stray_charges where resolution = 'foreign'`,
  );
  const foreign = new Set(aside.map((r) => r.reference));

  const claimedKeys = new Set(payments.filter((p) => p.claimed).map((p) => p.reservation_key));
  const claimedButLive = new Map<string, number>();
  for (const [key, lines] of redis.paying) {
    if (!claimedKeys.has(key)) continue;
    for (const [, sku = "", n] of lines.matchAll(/([^:,]+):(\d+)/g))
      claimedButLive.set(sku, (claimedButLive.get(sku) ?? 0) + Number(n));
  }
  const itemFigures = items.map((i) => {
    // A sale that stands is told of also where Redis was emptied.
    const none = stoppedWhy === null ? Number.NaN : 0;
    const free = Number(redis.free[i.sku] ?? none);
    const held = Number(redis.live[i.sku] ?? none) - (claimedButLive.get(i.sku) ?? 0);
    const difference = i.granted - free - held - i.claimed;
    if (Number.isNaN(difference)) throw new Unavailable("Redis does not have this sale; it is being rebuilt", 2000);
    return { ...i, free, held, difference };
  });

  const ours = ledger.charges.filter((c) => !foreign.has(c.reference));
  const { denied, charges, listed, unexplained } = compareCharges(saleNo, ours, [...payments], [...orders]);
  const liabilities = await unheardOf(ctx, unexplained);
  const attention = whoNeedsPerson([...payments], denied, listed);
  const count = (states: string[]) => payments.filter((p) => states.includes(p.state)).length;

  const audit: Audit = {
    saleId,
    at: new Date().toISOString(),
    ok: false,
    stoppedWhy,
    items: itemFigures.map((i) => ({
      sku: i.sku,
      name: i.name,
      granted: i.granted,
      free: i.free,
      held: i.held,
      claimed: i.claimed,
      sold: i.sold,
      difference: i.difference,
      opening: i.granted - i.topped_up,
      toppedUp: i.topped_up,
      inPayment: i.in_payment,
      notPutBack: i.not_put_back,
      putBack: i.put_back,
    })),
    charges: { ...charges, liabilities },
    orders: { recorded: orders.length, withoutCharge: denied.length },
    mails: {
      queued: mail?.queued ?? 0,
      sent: mail?.sent ?? 0,
      failed: mail?.failed ?? 0,
      withoutOrder: mail?.without_order ?? 0,
    },
    open: {
      paying: count(["queued", "sending", "action_required", "unknown"]),
      unknown: count(["unknown"]),
      journalLag: redis.journalLag,
      refunding: count(["refunding"]),
      attention: attention.length,
    },
    attention: attention.slice(0, ATTENTION_SHOWN),
    unreadable: ledger.odd,
  };
  const { charges: c, orders: o, mails: m } = audit;
  audit.ok =
    stoppedWhy === null &&
    audit.items.every((i) => i.difference === 0) &&
    c.withoutOrder + c.twice + c.amountDiffers + c.refundedUnasked + o.withoutCharge + m.withoutOrder === 0;
  return { audit, steady: JSON.stringify(before) === JSON.stringify({ items, mark }) };
}

/**
 * The books, read until they agree or a difference has stood through every reading. Throws Unavailable when a store is
 * away. For the first look a reading of the gateway's list will do that began `ageMsMax` ago: what is younger is not
 * judged by it.
 */
export async function auditSale(ctx: Context, saleId: string, saleNo: number, ageMsMax = 0): Promise<Audit> {
  for (let reading = 1; ; reading++) {
    const { audit, steady } = await readOnce(ctx, saleId, saleNo, reading === 1 ? ageMsMax : 0);
    if ((audit.ok && steady) || reading === READINGS_MAX) return audit;
    await new Promise((resolve) => setTimeout(resolve, READ_AGAIN_MS));
  }
}
