/**
 * Payments whose outcome is open: the gateway is asked about them by our reference until it has said how they ended,
 * without end.
 */
import { and, asc, eq, inArray, lte, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { PAYMENT_OPEN } from "../domain/lifecycle.ts";
import type { Gateway, GatewayAnswer } from "../gateways/port.ts";
import { type Payment, takeOver } from "../payments/rows.ts";
import { chargeRequest } from "../stages/charge.ts";
import { settleHolds } from "../stages/settle-holds.ts";
import { payments } from "../stores/schema.ts";
import { ask, askAlone, eachDue, record, widthOf } from "./ask.ts";

const BATCH_MAX = 200;
/** How often a reference that the gateway has not heard of is sent again before it is cancelled there. */
const SENDS_MAX = 3;
/**
 * Shortest time gateways keep an idempotency key (PayPal: 6 h, docs/measurements.md#gateways), less a margin: later
 * only look-ups (rule A).
 */
const KEY_LIFE_MS = 5 * 3_600_000;
const KEY_OVER = "the gateway has not heard of it and its key may have expired: look at the gateway's console";

/**
 * Cancels at the gateway before releasing; captured meanwhile answers "not cancelled", and the next look-up finds it.
 */
async function close(ctx: Context, gateway: Gateway, mine: Payment, said: GatewayAnswer): Promise<Payment> {
  const closed = await ask(
    ctx,
    gateway,
    "look",
    "cancel",
    async () => mine,
    (p) => around("gateway.cancel", () => gateway.cancel(p.reference)),
  );
  // No permit: it comes up again soon.
  return record(ctx, mine, closed === "BUSY" || closed === null ? said : closed.answer);
}

/**
 * The gateway has not heard of it. If the last send cannot be running any more the same reference is sent again, and at
 * last it is cancelled at the gateway. "Not found" alone ends nothing (rule A).
 */
async function notHeardOf(ctx: Context, gateway: Gateway, mine: Payment, said: GatewayAnswer): Promise<Payment | null> {
  const leaseMs = ctx.config.gatewayLeaseMs;
  const callEnded = mine.sentAt === null || Date.now() - mine.sentAt.getTime() > leaseMs;
  if (!callEnded) return record(ctx, mine, said);
  const keyAlive = mine.firstSentAt === null || Date.now() - mine.firstSentAt.getTime() < KEY_LIFE_MS;
  if (!keyAlive) {
    await ctx.db.update(payments).set({ attention: KEY_OVER }).where(eq(payments.reference, mine.reference));
    return record(ctx, mine, said);
  }
  const patient = Date.now() - mine.queuedAt.getTime() < ctx.config.payWaitMsMax;
  const pastDeadline = mine.actionDeadline !== null && mine.actionDeadline.getTime() < Date.now();
  if (mine.sends >= SENDS_MAX || !patient || pastDeadline) return close(ctx, gateway, mine, said);
  const again = await ask(
    ctx,
    gateway,
    "look",
    "charge",
    () => takeOver(ctx.db, mine.reference, mine.fence, leaseMs, true),
    (p) => around("gateway.chargeAgain", () => gateway.charge(chargeRequest(p))),
  );
  return again === "BUSY" || again === null ? null : record(ctx, again.asked, again.answer);
}

export type Closed =
  | { outcome: "closed" | "unknown" }
  | { outcome: "captured"; gateway: string; amount: number; currency: string };

/**
 * Cancels a reference that Postgres does not know, at every gateway that may know it; or says that one
 * captured it.
 */
export async function closeDoor(ctx: Context, reference: string): Promise<Closed> {
  for (const gateway of ctx.gateways.values()) {
    if (!gateway.needsPermits) continue;
    const said = await askAlone(ctx, gateway, "look", "cancel", () =>
      around("gateway.cancel", () => gateway.cancel(reference)),
    );
    if (said?.outcome === "captured")
      return { outcome: "captured", gateway: gateway.name, amount: said.amount, currency: said.currency };
    if (said?.outcome !== "cancelled" && said?.outcome !== "declined" && said?.outcome !== "refunded")
      return { outcome: "unknown" };
  }
  return { outcome: "closed" };
}

/** One open payment: look it up, and write down what is said. */
async function resolve(ctx: Context, p: Payment): Promise<Payment | "BUSY" | null> {
  const gateway = ctx.gateways.get(p.gateway);
  if (!gateway) return null;
  const looked = await ask(
    ctx,
    gateway,
    "look",
    "lookUp",
    () => around("reconcile.takeOver", () => takeOver(ctx.db, p.reference, p.fence, ctx.config.gatewayLeaseMs, false)),
    (mine) => around("gateway.lookUp", () => gateway.lookUp(mine.reference)),
  );
  if (looked === "BUSY" || looked === null) return looked;
  const { asked: mine, answer: said } = looked;
  if (said.outcome === "not_found") return notHeardOf(ctx, gateway, mine, said);
  const pastDeadline = mine.actionDeadline !== null && mine.actionDeadline.getTime() < Date.now();
  if (said.outcome === "action_required" && pastDeadline) return close(ctx, gateway, mine, said);
  return record(ctx, mine, said);
}

/**
 * One bounded round over those that are due; whoever a shopper waits for comes before those that have been in trouble
 * for long.
 */
export async function lookUpOnce(ctx: Context): Promise<number> {
  const due = await ctx.db
    .select()
    .from(payments)
    .where(and(inArray(payments.state, [...PAYMENT_OPEN]), lte(payments.checkAt, sql`now()`)))
    .orderBy(sql`${payments.attention} is not null`, asc(payments.checkAt))
    .limit(BATCH_MAX);
  return eachDue(due, widthOf(ctx), async (p) => {
    const stored = await resolve(ctx, p).catch((error) => {
      ctx.log.error({ err: error, reference: p.reference }, "look-up stopped half-way");
      return null;
    });
    if (stored === "BUSY" || stored === null) return stored === "BUSY" ? "BUSY" : false;
    await settleHolds(ctx, [stored]);
    return true;
  });
}
