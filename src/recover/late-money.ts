/**
 * Money that came late, found in the gateway's own list: honoured while its hold lives, else refunded. The walk keeps
 * its place, takes permits, and lets no odd record stand in the way of the others.
 */
import { and, eq, inArray, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { Unavailable } from "../domain/errors.ts";
import { saleNoOfReservation } from "../domain/ids.ts";
import { lateStatesBefore } from "../domain/lifecycle.ts";
import type { Gateway, ListedCharge, ListPage } from "../gateways/port.ts";
import { claimLate } from "../payments/claim.ts";
import { CAPTURED_LATE, endedUnpaid, findPayments, type Payment, whileSelling } from "../payments/rows.ts";
import { settleHolds } from "../stages/settle-holds.ts";
import { isDataError } from "../stores/refused.ts";
import { gates, payments, strayCharges } from "../stores/schema.ts";
import { KNOWN_STATUSES, pagesOf } from "./ledger.ts";
import { noteStray } from "./restored.ts";
import { strayOf } from "./stray.ts";

const LIST_PAGE = 100;
/** A round goes on while the list does, but not for ever: the place is kept for the next. */
const PAGES_MAX = 100;
const REFERENCE = /^[0-9A-Z]{26}$/;

/**
 * The ladder for late money: a capture of a payment that had ended unpaid. While its hold lives it is honoured: pinned
 * again, claimed again, confirmed. Else, and when the units are gone, the reservation is paid by another attempt or the
 * sum differs, it is refunded: whoever was told "expired" must not find an order.
 */
async function lateMoney(ctx: Context, gateway: Gateway, p: Payment, c: ListedCharge): Promise<void> {
  const sale = await ctx.sales.get(p.saleId);
  // The walk keeps its place and comes back to this charge.
  if (sale && sale.stoppedWhy !== null) throw new Unavailable(`${sale.id} stands; late money waits`);
  if (sale && p.gateway === gateway.name && c.amount === p.amount && c.currency === p.currency) {
    const pin = {
      key: p.reservationKey,
      customerId: p.customerId,
      reference: p.reference,
      referenceBefore: p.reference,
    };
    // The claim holds only in the Redis that has the pin (rule I).
    let epoch = 0;
    const { results } = await around("late.pin", () =>
      ctx.sales.call(sale, (s) => {
        epoch = s.epoch;
        return ctx.scripts.pay(s, [pin]);
      }),
    );
    // Neither yes nor no yet: the walk comes back to this charge.
    if (results[0]?.outcome === "PAUSED") throw new Unavailable("payments are paused; late money waits");
    const honoured =
      results[0]?.outcome === "PAYING" &&
      (await around("late.claim", () => claimLate(ctx.db, p.reference, c.id, p.saleId, epoch)));
    if (honoured) {
      ctx.log.warn(
        { reference: p.reference },
        "captured after its payment had ended, while its hold still lived: honoured",
      );
      return settleHolds(ctx, [honoured]);
    }
  }
  ctx.log.error({ reference: p.reference }, "captured after its payment had ended: it is refunded");
  const refund = {
    state: "refunding" as const,
    chargeId: c.id,
    gateway: gateway.name,
    amount: c.amount,
    currency: c.currency,
    late: true,
  };
  await around("late.refund", async () =>
    ctx.db
      .update(payments)
      .set({ ...refund, checkAt: sql`now()`, attention: CAPTURED_LATE })
      .where(
        and(eq(payments.reference, p.reference), inArray(payments.state, lateStatesBefore("refunding")), whileSelling),
      ),
  );
}

/**
 * A status that we do not know, of a charge that none of our payments explains: listed for a person, and it stops
 * nothing.
 */
async function noteStrange(ctx: Context, gateway: Gateway, c: ListedCharge): Promise<void> {
  const { reference, reservationId, currency, id: chargeId } = c;
  const amount = Number.isSafeInteger(c.amount) ? c.amount : 0;
  await ctx.db
    .insert(strayCharges)
    .values({ gateway: gateway.name, reference, chargeId, reservationId, amount, currency })
    .onConflictDoNothing();
}

/** A status that we do not know, of a payment of ours: its state stays what it is, and a person is told. */
async function noteOdd(ctx: Context, p: Payment, c: ListedCharge): Promise<void> {
  const attention = `the gateway's list says ${JSON.stringify(c.status.slice(0, 64))}`;
  await ctx.db
    .update(payments)
    .set({ attention: sql`coalesce(${payments.attention}, ${attention})` })
    // What a person has decided about is not told again.
    .where(and(eq(payments.reference, p.reference), sql`${payments.settled} ->> 'why' is distinct from ${attention}`));
}

/** One record; true when it was late or stray. */
async function look(ctx: Context, gateway: Gateway, c: ListedCharge, p: Payment | undefined): Promise<boolean> {
  const isKnown = KNOWN_STATUSES.includes(c.status);
  if (isKnown && c.status !== "captured") return false;
  if (!p) {
    if (saleNoOfReservation(c.reservationId) === null) return false;
    if (isKnown) await noteStray(ctx, gateway.name, await strayOf(ctx, [c]));
    else await noteStrange(ctx, gateway, c);
    return true;
  }
  if (!isKnown) await noteOdd(ctx, p, c);
  else if (endedUnpaid(p)) await lateMoney(ctx, gateway, p, c);
  else return false;
  return true;
}

async function lookAtPage(ctx: Context, gateway: Gateway, page: ListPage, errors: unknown[]): Promise<number> {
  const references = page.charges.map((c) => c.reference).filter((r) => REFERENCE.test(r));
  const ours = new Map((await findPayments(ctx.db, references)).map((p) => [p.reference, p]));
  let found = 0;
  for (const c of page.charges) {
    try {
      if (await look(ctx, gateway, c, ours.get(c.reference))) found++;
    } catch (error) {
      ctx.log.warn({ err: error, reference: c.reference }, "a charge of the gateway's list could not be looked at");
      // One that Postgres will never take must not keep the walk at its page.
      if (!isDataError(error)) errors.push(error);
    }
  }
  if (page.odd > 0)
    ctx.log.warn({ gateway: gateway.name, odd: page.odd }, "records of the gateway's list cannot be read");
  return found;
}

/**
 * Walks the gateway's own list from where it stood for charges that no live payment explains. The place moves to the
 * last page that had anything: that page is read again next time, since its charges may still change their state; and
 * it does not move past a charge that has to wait.
 */
export async function walkCharges(ctx: Context, gateway: Gateway): Promise<number> {
  const [row] = await ctx.db.select().from(gates).where(eq(gates.gateway, gateway.name));
  let place = row?.listCursor ?? null;
  const errors: unknown[] = [];
  let [found, pages] = [0, 0];
  for await (const page of pagesOf(ctx, gateway, place, LIST_PAGE)) {
    const isEmpty = page.charges.length + page.odd === 0;
    if (!isEmpty && errors.length === 0 && page.after !== place) {
      place = page.after;
      await ctx.db.update(gates).set({ listCursor: place }).where(eq(gates.gateway, gateway.name));
    }
    found += await lookAtPage(ctx, gateway, page, errors);
    if (++pages >= PAGES_MAX) break;
  }
  if (errors.length > 0) throw errors[0];
  return found;
}
