/**
 * recover: the way out after Postgres was restored from an older copy (recover/restored.ts). It asks the gateways'
 * lists and what Redis holds, shows what Postgres does not know, and, told to apply, writes it down:
 *
 *   charge    a captured charge without a payment: payment and order are made anew and its units claimed, when its
 *             lines are known from the hold, the mirror, or the only cart that costs so much; else a person has to
 *             refund it (`refund`) or to call it foreign
 *   cash      a hold that was confirmed without a charge: cash on delivery, made anew from the hold
 *   queued    a payment that this copy still has in line, and that was captured since
 *   pinned    a hold that is paying under a payment Postgres does not have: it is cancelled at the gateway; captured
 *             makes it a charge
 *   refunded  an order whose charge was given back since: it is refunded here too, its units not put back
 *
 * Every step is a transaction of its own and can be repeated. Only when nothing is left open do the sales go on.
 */
import { and, eq, inArray, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { NotEnough } from "../domain/errors.ts";
import { type Hold, parseHold } from "../domain/hold.ts";
import { saleNoOfReservation } from "../domain/ids.ts";
import { cartOf, type Sale } from "../domain/sale.ts";
import type { ListedCharge } from "../gateways/port.ts";
import { claimRecovered, insertRecovered } from "../payments/claim.ts";
import { findPayments, type Payment } from "../payments/rows.ts";
import { recordOrders } from "../stages/persist.ts";
import { saleKeys } from "../stores/keys.ts";
import type { Tx } from "../stores/postgres.ts";
import { orders, payments, strayCharges } from "../stores/schema.ts";
import { stopSelling } from "../stores/stop-selling.ts";
import { cartsOfAmount } from "./carts.ts";
import { closeDoor } from "./open-payments.ts";
import { goOn } from "./resume.ts";

const LIST_PAGE = 500;
const SCAN_COUNT = 500;

export interface Finding {
  kind: "charge" | "cash" | "queued" | "pinned" | "refunded";
  saleId: string | null;
  reference: string;
  reservationId: string;
  gateway: string;
  amount: number;
  currency: string;
  /** Null when neither the hold nor the mirror tells. */
  customerId: string | null;
  /** `sku:quantity,...`; null when nothing tells what was bought. */
  lines: string | null;
  /** What was done, or is to be done. */
  outcome: "found" | "order" | "refund" | "foreign" | "released" | "open";
  /** Why it is open, in a sentence. */
  why?: string;
}
export interface Recovery {
  saleIds: string[];
  stoppedWhy: string | null;
  findings: Finding[];
  /** Changes of stock that Redis has and Postgres does not: their items are not known, so a person makes them again. */
  stockMoves: Array<{ saleId: string; id: string; delta: number }>;
  open: number;
  /** The sales go on. */
  resumed: boolean;
}
export interface RecoverOptions {
  apply?: boolean;
  /** Charges whose lines are unknown, or whose units are gone, are refunded at their gateway. */
  refund?: boolean;
  /** References of charges that are none of ours. */
  foreign?: string[];
}

type Listed = ListedCharge & { gateway: string };

async function listed(ctx: Context): Promise<Listed[]> {
  const all: Listed[] = [];
  for (const gateway of ctx.gateways.values()) {
    for (let after: string | null = null, more = true; more; ) {
      const page = await gateway.list(after, LIST_PAGE);
      all.push(...page.charges.map((c) => ({ ...c, gateway: gateway.name })));
      more = page.next !== null && page.next !== after && page.charges.length > 0;
      after = page.next;
    }
  }
  return all;
}

/** Holds as Redis has them, of whatever epoch; none where it was emptied. */
async function holdsOf(ctx: Context, saleId: string): Promise<Map<string, Hold>> {
  const holds = new Map<string, Hold>();
  const at = saleKeys(saleId).transitionKeys[3] as string;
  let cursor = "0";
  do {
    const [next, flat] = await ctx.redis.client.hscan(at, cursor, "COUNT", SCAN_COUNT);
    for (let i = 0; i < flat.length; i += 2) holds.set(flat[i] as string, parseHold(flat[i + 1] as string));
    cursor = next;
  } while (cursor !== "0");
  return holds;
}

const keyOf = (reservationId: string) => /^rsv_[^.]+\.\d+\.(.{22})/.exec(reservationId)?.[1] ?? "";

/** What was bought and by whom: the hold under that reference, the mirror's, or the only cart of that price. */
async function boughtWith(ctx: Context, sale: Sale | null, c: Listed, holds: Map<string, Hold>) {
  const key = keyOf(c.reservationId);
  const hold = holds.get(key);
  if (hold) return { customerId: hold.customerId, lines: hold.lines };
  const [row] = await ctx.db.execute<{ customer_id: string; lines: string }>(
    sql`select customer_id, lines from reservations where sale_id = ${sale?.id ?? ""} and key = ${key}`,
  );
  if (row) return { customerId: row.customer_id, lines: row.lines };
  const carts = sale && c.currency === sale.currency ? cartsOfAmount(sale, c.amount) : [];
  return { customerId: null, lines: carts.length === 1 ? (carts[0] as string) : null };
}

async function findOfSale(ctx: Context, sale: Sale, charges: Listed[]): Promise<Finding[]> {
  const holds = await holdsOf(ctx, sale.id);
  const bound = [...holds].filter(([, h]) => h.reference !== "" && (h.state === "confirmed" || h.state === "paying"));
  const references = [...bound.map(([, h]) => h.reference), ...charges.map((c) => c.reference)];
  const known = new Map<string, Payment>();
  for (let i = 0; i < references.length; i += LIST_PAGE)
    for (const p of await findPayments(ctx.db, references.slice(i, i + LIST_PAGE))) known.set(p.reference, p);
  const findings: Finding[] = [];
  const charged = new Set<string>();
  for (const c of charges) {
    const p = known.get(c.reference);
    const common = { saleId: sale.id, ...pick(c) };
    if (c.status === "refunded" && p?.state === "captured")
      findings.push({ ...common, kind: "refunded", customerId: p.customerId, lines: null, outcome: "found" });
    if (c.status !== "captured") continue;
    charged.add(c.reference);
    if (!p) findings.push({ ...common, kind: "charge", outcome: "found", ...(await boughtWith(ctx, sale, c, holds)) });
    else if (p.state === "queued")
      findings.push({ ...common, kind: "queued", customerId: p.customerId, lines: null, outcome: "found" });
  }
  for (const [key, h] of bound) {
    const p = known.get(h.reference);
    if (charged.has(h.reference) || (p && !(p.state === "queued" && h.state === "confirmed"))) continue;
    const { amount } = cartOf(sale, h.lines);
    findings.push({
      kind: p ? "queued" : h.state === "paying" ? "pinned" : "cash",
      saleId: sale.id,
      reference: h.reference,
      reservationId: ctx.ids.reservationId(sale.no, h.customerId, key),
      gateway: p?.gateway ?? "cod",
      amount,
      currency: sale.currency,
      customerId: h.customerId,
      lines: h.lines,
      outcome: "found",
    });
  }
  return findings;
}
const pick = ({ reference, reservationId, gateway, amount, currency }: Listed) => ({
  reference,
  reservationId,
  gateway,
  amount,
  currency,
});

/** Asks, and changes nothing. */
async function find(ctx: Context, sales: Sale[], all: boolean): Promise<Finding[]> {
  const charges = await listed(ctx);
  const foreign = await ctx.db
    .select({ reference: strayCharges.reference })
    .from(strayCharges)
    .where(eq(strayCharges.resolution, "foreign"));
  const setAside = new Set(foreign.map((r) => r.reference));
  const ours = charges.filter((c) => saleNoOfReservation(c.reservationId) !== null && !setAside.has(c.reference));
  const findings: Finding[] = [];
  for (const sale of sales)
    findings.push(
      ...(await findOfSale(
        ctx,
        sale,
        ours.filter((c) => saleNoOfReservation(c.reservationId) === sale.no),
      )),
    );
  if (!all) return findings;
  const nos = new Set(sales.map((s) => s.no));
  const lost = ours.filter((c) => c.status === "captured" && !nos.has(saleNoOfReservation(c.reservationId) as number));
  const known = new Set(
    (
      await findPayments(
        ctx.db,
        lost.map((c) => c.reference),
      )
    ).map((p) => p.reference),
  );
  for (const c of lost.filter((x) => !known.has(x.reference)))
    findings.push({ ...pick(c), kind: "charge", saleId: null, customerId: null, lines: null, outcome: "found" });
  return findings;
}

async function lostMoves(ctx: Context, sales: Sale[]): Promise<Recovery["stockMoves"]> {
  const lost: Recovery["stockMoves"] = [];
  for (const { id: saleId } of sales) {
    const moves = await ctx.redis.client.hgetall(saleKeys(saleId).moves);
    const rows = await ctx.db.execute<{ id: string }>(sql`select id from stock_moves where sale_id = ${saleId}`);
    const known = new Set(rows.map((r) => r.id));
    for (const [id, delta] of Object.entries(moves))
      if (!known.has(id)) lost.push({ saleId, id, delta: Number(delta) });
  }
  return lost;
}

/** What this charge or hold stands for is claimed, and its order written, in one transaction. */
async function makeOrder(ctx: Context, sale: Sale, f: Finding, charge: string | null): Promise<void> {
  await ctx.db.transaction(async (tx) => {
    if (f.kind === "queued") await claimRecovered(tx, f.reference, charge);
    else {
      const { lines, shown: _, amount } = cartOf(sale, f.lines as string);
      await insertRecovered(tx, {
        reference: f.reference,
        saleId: sale.id,
        reservationId: f.reservationId,
        reservationKey: keyOf(f.reservationId),
        customerId: f.customerId ?? "unknown",
        gateway: f.gateway,
        amount: f.kind === "cash" ? amount : f.amount,
        currency: f.currency,
        lines,
        chargeId: charge,
      });
    }
    await recordOrders(tx, [f.reference]);
    await tx.update(orders).set({ recovered: true }).where(eq(orders.reference, f.reference));
    // Nobody knows where to send it: an operator asks the gateway's console for the address.
    if (f.kind !== "queued")
      await tx.execute(sql`
        update outbox set state = 'failed', last_error = 'the order was recovered and its contact is not known' where order_id = ${`ord_${f.reference}`}`);
    await resolveStray(tx, f, "order");
  });
  f.outcome = "order";
}

async function resolveStray(tx: Pick<Tx, "execute">, f: Finding, resolution: "order" | "refund" | "foreign") {
  await tx.execute(sql`
    insert into stray_charges (gateway, reference, charge_id, reservation_id, amount, currency, resolution)
    select ${f.gateway}, ${f.reference}, '', ${f.reservationId}, ${f.amount}, ${f.currency}, ${resolution} where ${f.kind === "charge"}
    on conflict (gateway, reference) do update set resolution = excluded.resolution`);
}

/** A payment that is on its way back from its first day: reconcile refunds it as it does late money. */
async function refundIt(ctx: Context, f: Finding): Promise<void> {
  await ctx.db.transaction(async (tx) => {
    await tx.execute(sql`
      insert into payments (reference, sale_id, reservation_id, reservation_key, customer_id, gateway, token_digest,
        amount, currency, lines, contact,
        language, state, late, check_at, attention)
      values (${f.reference}, ${f.saleId ?? `sale-no-${saleNoOfReservation(f.reservationId)}`}, ${f.reservationId}, ${keyOf(f.reservationId)},
        ${f.customerId ?? "unknown"}, ${f.gateway}, '', ${f.amount}, ${f.currency}, '[]', '{"email":"","name":""}', 'en', 'refunding', true, now(),
        'recovered: refunded') on conflict do nothing`);
    await resolveStray(tx, f, "refund");
  });
  f.outcome = "refund";
}

/**
 * The gateway gave it back after the copy was made; its goods are a person's to count, so they are not put back on
 * sale.
 */
async function followRefund(ctx: Context, f: Finding): Promise<void> {
  await ctx.db.transaction(async (tx) => {
    const mine = and(eq(payments.reference, f.reference), eq(payments.state, "captured"));
    await tx.update(payments).set({ state: "refunding", checkAt: sql`now()` }).where(mine);
    await tx
      .update(orders)
      .set({ status: "refunding", refundReason: "refunded at the gateway", restock: false })
      .where(and(eq(orders.reference, f.reference), eq(orders.status, "confirmed")));
  });
  f.outcome = "refund";
}

async function applyOne(ctx: Context, f: Finding, o: RecoverOptions, charges: Map<string, Listed>): Promise<void> {
  const sale = f.saleId === null ? null : await ctx.sales.get(f.saleId);
  if (o.foreign?.includes(f.reference)) {
    await resolveStray(ctx.db, f, "foreign");
    f.outcome = "foreign";
    return;
  }
  if (f.kind === "refunded") return followRefund(ctx, f);
  if (f.kind === "pinned") {
    const closed = await closeDoor(ctx, f.reference);
    if (closed.outcome === "closed") f.outcome = "released";
    else if (closed.outcome === "captured")
      Object.assign(f, { kind: "charge", gateway: closed.gateway, amount: closed.amount, currency: closed.currency });
    else Object.assign(f, { outcome: "open", why: "the gateway does not say how it ended; run this again" });
    if (f.kind === "pinned") return;
  }
  const charge = charges.get(f.reference)?.id ?? null;
  try {
    if (sale && (f.lines !== null || f.kind === "queued")) return await makeOrder(ctx, sale, f, charge);
    f.why = "nothing tells what was bought: refund it (--refund), or say that it is none of ours (--foreign)";
  } catch (error) {
    if (error instanceof NotEnough)
      f.why = "its units are not there: add stock and run this again, or refund it (--refund)";
    else if ((error as { cause?: { code?: string } }).cause?.code === "23505")
      f.why =
        "another payment of its reservation is live: run this again when that one has ended, or refund it (--refund)";
    else throw error;
  }
  if (o.refund && f.kind === "charge") return refundIt(ctx, f);
  f.outcome = "open";
}

/** Asks, shows, does. Without `apply` nothing is changed. */
export async function recover(ctx: Context, sales: Sale[], o: RecoverOptions & { all: boolean }): Promise<Recovery> {
  const findings = await find(ctx, sales, o.all);
  const stoppedWhy = sales.find((s) => s.stoppedWhy !== null)?.stoppedWhy ?? null;
  const saleIds = sales.map((s) => s.id);
  const recovery: Recovery = {
    saleIds,
    stoppedWhy,
    findings,
    stockMoves: await lostMoves(ctx, sales),
    open: findings.length,
    resumed: false,
  };
  if (!o.apply) return recovery;
  const affected = [...new Set(findings.flatMap((f) => (f.saleId === null ? [] : [f.saleId])))];
  if (affected.length > 0)
    await stopSelling(ctx, affected, `${findings.length} charges or confirmed holds are not in Postgres`);
  const charges = new Map((await listed(ctx)).map((c) => [c.reference, c]));
  for (const f of findings) await applyOne(ctx, f, o, charges);
  recovery.open = findings.filter((f) => f.outcome === "open").length;
  if (recovery.open > 0) return recovery;
  // A sale that was made since the copy: its number must not be given out again, or its charges would be taken for the
  // new one's.
  const numbers = [...charges.values()].map((c) => saleNoOfReservation(c.reservationId) ?? 0);
  await ctx.db.execute(
    sql`select setval(pg_get_serial_sequence('sales', 'no'),
      greatest(nextval(pg_get_serial_sequence('sales', 'no')), ${Math.max(0, ...numbers)}))`,
  );
  for (const sale of sales) await goOn(ctx, sale, await holdsOf(ctx, sale.id));
  recovery.resumed = true;
  return recovery;
}

/** Orders that were recovered and whose buyer cannot be told yet. */
async function ordersToFill(ctx: Context, saleIds: string[]): Promise<string[]> {
  const rows = await ctx.db
    .select({ id: orders.id, contact: orders.contact })
    .from(orders)
    .where(and(inArray(orders.saleId, saleIds), eq(orders.recovered, true)));
  return rows.filter((r) => r.contact.email === "").map((r) => r.id);
}

const WHAT: Record<Finding["kind"], string> = {
  charge: "captured charge without a payment",
  cash: "confirmed hold without a payment (cash on delivery)",
  queued: "payment still in line here, and captured since",
  pinned: "hold that is paying under a payment that is not here",
  refunded: "order whose charge was refunded since",
};

/** For a person, in plain sentences. */
export async function tellRecovery(ctx: Context, r: Recovery): Promise<string[]> {
  const said = [r.stoppedWhy === null ? "No sale is stopped." : `Stopped: ${r.stoppedWhy}`];
  for (const f of r.findings) {
    const who = f.customerId === null ? "customer unknown" : `customer ${f.customerId}`;
    const what = f.lines === null ? "" : `, ${f.lines}`;
    said.push(
      `${f.outcome}: ${WHAT[f.kind]}: ${f.reference}, ${f.amount} ${f.currency} by ${f.gateway}, sale ${f.saleId ?? "unknown"}, ${f.reservationId}, ${who}${what}${f.why ? `; ${f.why}` : ""}`,
    );
  }
  for (const m of r.stockMoves)
    said.push(
      `Stock change ${m.id} of ${m.delta} in ${m.saleId} is in Redis and not in Postgres: make it again if it was yours.`,
    );
  const toFill = await ordersToFill(ctx, r.saleIds);
  if (toFill.length > 0) said.push(`Orders without a contact, to be filled in by a person: ${toFill.join(", ")}`);
  said.push(`${r.findings.length} found, ${r.open} open.${r.resumed ? " The sales go on." : ""}`);
  if (!r.resumed && (r.open > 0 || r.stoppedWhy !== null))
    said.push("Nothing is sold until `fukubukuro recover --apply` leaves nothing open.");
  return said;
}
