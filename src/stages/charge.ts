/**
 * charge: what happens inside a permit. Claim in Postgres, ask the gateway, write the outcome, bring the hold in line.
 * No transaction is open while the gateway works; unknown is a state, not an error.
 */

import { and, eq, inArray, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { Gate, Permit } from "../gateways/gate.ts";
import type { Gateway, GatewayAnswer } from "../gateways/port.ts";
import { claimAtOnce, claimForSending } from "../payments/claim.ts";
import { cancelQueued, findPayment, NO_UNITS, type Payment, UNUSABLE } from "../payments/rows.ts";
import { ACTION_LOOK_UP_MS, settlePayment } from "../payments/settle.ts";
import { withoutGuilty } from "../stores/coalesce.ts";
import { CHANGES_CHANNEL } from "../stores/keys.ts";
import { storable } from "../stores/refused.ts";
import { gates, payments } from "../stores/schema.ts";
import { idle } from "../work-hints.ts";
import { settleHolds } from "./settle-holds.ts";

const COD_BATCH_MAX = 256;
const ANSWER_LENGTH_MAX = 4_000;
const IDLE_MS = 50;
/** Pause between batches of a line without permits: a batch is eight round trips, for one payment or for hundreds. */
const BATCH_PACE_MS = 20;

/** Calls the gateway, measured. A thrown error of the adapter is unknown too. */
export async function askGateway(
  ctx: Context,
  gateway: Gateway,
  kind: "charge" | "lookUp" | "cancel" | "refund",
  ask: () => Promise<GatewayAnswer>,
): Promise<{ answer: GatewayAnswer; callMs: number }> {
  const began = performance.now();
  let answer: GatewayAnswer;
  try {
    answer = await ask();
  } catch (error) {
    ctx.log.error({ err: error, gateway: gateway.name, kind }, "gateway adapter failed");
    answer = { outcome: "unknown", why: "the adapter failed", answered: false };
  }
  answer = fitToStore(answer);
  const callMs = performance.now() - began;
  ctx.metrics.gatewayCalls.observe({ gateway: gateway.name, kind, answer: answer.outcome }, callMs / 1000);
  if (answer.outcome === "unknown" || answer.outcome === "not_done")
    ctx.log.warn({ gateway: gateway.name, kind, ...answer }, "gateway");
  return { answer, callMs };
}

/** Look-ups of all shoppers at the gateway's page together take at most so much of what the gateway can do. */
const ACTION_SHARE = 0.1;

/**
 * How long until a shopper who is at the gateway's page is looked up unasked: the rarer, the more of them there are.
 */
export async function actionLookMs(ctx: Context, gateway: string): Promise<number> {
  const gate = ctx.gates.get(gateway);
  if (!gate) return ACTION_LOOK_UP_MS;
  const [waiting] = await ctx.db
    .select({ n: sql<number>`count(*)::int` })
    .from(payments)
    .where(and(eq(payments.state, "action_required"), eq(payments.gateway, gateway)));
  const { callMs } = await ctx.reads.line(gateway);
  return Math.max(ACTION_LOOK_UP_MS, Math.ceil(((waiting?.n ?? 0) + 1) * callMs) / (gate.limit * ACTION_SHARE));
}

/** Texts of another program's: one that Postgres will not take would leave the payment open for ever. */
function fitToStore(answer: GatewayAnswer): GatewayAnswer {
  const fit = Object.entries(answer).map(([k, v]) => [k, typeof v === "string" ? storable(v, ANSWER_LENGTH_MAX) : v]);
  return Object.fromEntries(fit) as GatewayAnswer;
}

export function chargeRequest(p: Payment) {
  const { reference, reservationId, amount, currency, token, returnUrl, lines } = p;
  return { reference, reservationId, amount, currency, token, returnUrl, lines };
}

const FAILURES_MAX = 5;
/**
 * In a row means a row of every call that can be out at once, twice: single failures among good answers are no gateway
 * that is away.
 */
export const failuresMaxOf = (limit: number) => Math.max(FAILURES_MAX, 2 * limit);

/**
 * Keeps a worker from sending payment after payment to a gateway that is away: after so many calls in a row without a
 * definite answer it waits, longer each time, and then tries one payment alone. The others stay in line and keep their
 * holds.
 */
export function makeBreaker(failuresMax = FAILURES_MAX, waitMs = 1_000, waitMsMax = 30_000) {
  let failures = 0;
  let openUntil = 0;
  return {
    heard(answer: GatewayAnswer): void {
      if (answer.outcome !== "unknown" && answer.outcome !== "not_done") {
        failures = 0;
        return;
      }
      failures++;
      if (failures >= failuresMax)
        openUntil = performance.now() + Math.min(waitMs * 2 ** (failures - failuresMax), waitMsMax);
    },
    /** How long to wait before the next call, ms. */
    waitMs: () => Math.max(0, openUntil - performance.now()),
    /** How many calls may be out: one, until there was a definite answer again. */
    width: (limit: number) => (failures >= failuresMax ? 1 : limit),
  };
}
export type Breaker = ReturnType<typeof makeBreaker>;

/** The payment at the head of the line, under its permit. */
export async function charge(
  ctx: Context,
  gateway: Gateway,
  gate: Gate,
  permit: Permit,
  breaker?: Breaker,
): Promise<void> {
  const payment = await findPayment(ctx.db, permit.reference);
  const sale = payment && (await ctx.sales.get(payment.saleId));
  if (!payment || !sale || payment.state !== "queued" || sale.stoppedWhy !== null)
    return gate.settle(permit, null, null);
  if (Date.now() - payment.queuedAt.getTime() > ctx.config.payWaitMsMax) {
    await gate.settle(permit, null, null);
    return settleHolds(ctx, await cancelQueued(ctx.db, [payment.reference], "waited_too_long"));
  }
  // Rule E, first check. Not sent: reconcile puts the payment back in line.
  if (!permit.covers()) return gate.settle(permit, null, null);
  const claim = await around("charge.claim", () =>
    claimForSending(ctx.db, payment.reference, sale.epoch, ctx.config.gatewayLeaseMs),
  );
  switch (claim.outcome) {
    case "NO_UNITS":
      ctx.log.error({ reference: payment.reference }, "no unit to claim: the hold is released and nobody was charged");
      await gate.settle(permit, null, null);
      return settleHolds(ctx, await cancelQueued(ctx.db, [payment.reference], NO_UNITS));
    case "OLD_EPOCH":
      await ctx.sales.refresh(sale.id);
      return gate.settle(permit, null, null);
    case "NOT_QUEUED":
      return gate.settle(permit, null, null);
    case "CLAIMED":
      // Rule E, second check: claimed but not sent; reconcile cancels it at the gateway and gives the hold back.
      if (!permit.covers()) return gate.settle(permit, null, null);
  }
  const { answer, callMs } = await askGateway(ctx, gateway, "charge", () =>
    around("gateway.charge", () => gateway.charge(chargeRequest(claim.payment))),
  );
  breaker?.heard(answer);
  ctx.metrics.outcomes.inc({ stage: "charge", outcome: answer.outcome });
  const lookMs = answer.outcome === "action_required" ? await actionLookMs(ctx, gateway.name) : undefined;
  // First the record, then the permit: a crash between leaves a permit to lapse, never a charge without its record.
  const stored = await around("charge.outcome", () =>
    settlePayment(ctx.db, claim.payment, answer, ctx.config.actionDeadlineMs, lookMs),
  );
  await Promise.all([gate.settle(permit, answer, callMs), settleHolds(ctx, [stored])]);
  if (stored.state === "action_required" || stored.state === "unknown")
    await ctx.redis.client.publish(CHANGES_CHANNEL, stored.reservationKey);
}

/** Shown in the cockpit and in /metrics, on whichever process they are read. */
function tellBreaker(ctx: Context, gateway: Gateway, waitMs: number): void {
  ctx.metrics.breaker.set({ gateway: gateway.name }, waitMs > 0 ? 1 : 0);
  ctx.db
    .update(gates)
    .set({ breakerUntil: waitMs > 0 ? sql`now() + ${waitMs} * interval '1 millisecond'` : null })
    .where(eq(gates.gateway, gateway.name))
    .catch((error) => ctx.log.debug({ err: error }, "the breaker could not be told"));
}

/** Takes permits and works them off side by side, up to the gate's limit, until the signal. */
export async function runCharges(ctx: Context, gateway: Gateway, gate: Gate, signal: AbortSignal): Promise<void> {
  const running = new Set<Promise<void>>();
  const breaker = makeBreaker(failuresMaxOf(gate.limit));
  let toldOpen = false;
  let freed = () => {};
  ctx.metrics.breaker.set({ gateway: gateway.name }, 0);
  while (!signal.aborted) {
    if (running.size >= breaker.width(gate.limit)) {
      // Not a race of those that run: a slow one would keep every race that it lost.
      await new Promise<void>((resolve) => {
        freed = resolve;
      });
      continue;
    }
    const waitMs = breaker.waitMs();
    if (waitMs > 0 !== toldOpen) {
      toldOpen = waitMs > 0;
      tellBreaker(ctx, gateway, waitMs);
    }
    if (waitMs > 0) {
      await idle(ctx.work, "never", Math.min(waitMs, 500), signal);
      continue;
    }
    const got = await gate.take("charge").catch((error) => {
      ctx.log.debug({ err: error }, "no permit");
      return "BUSY" as const;
    });
    if (typeof got === "object" && "token" in got) {
      const one: Promise<void> = charge(ctx, gateway, gate, got, breaker)
        .catch((error) =>
          ctx.log.error({ err: error, reference: got.reference }, "charge stopped half-way; reconcile goes on with it"),
        )
        .finally(() => {
          running.delete(one);
          freed();
        });
      running.add(one);
      continue;
    }
    await idle(ctx.work, "line", typeof got === "object" ? Math.min(got.opensInMs, 500) : IDLE_MS, signal);
  }
  await Promise.allSettled(running);
}

/** One batch of a line that needs no permits. Answers how many were taken from the line. */
export async function chargeBatch(ctx: Context, gateway: Gateway): Promise<number> {
  const references = await around("cod.line", () => ctx.scripts.lineTake(gateway.name, COD_BATCH_MAX));
  if (references.length === 0) return 0;
  const queued = await ctx.db
    .select({ reference: payments.reference, saleId: payments.saleId })
    .from(payments)
    .where(and(inArray(payments.reference, references), eq(payments.state, "queued")));
  for (const saleId of new Set(queued.map((p) => p.saleId))) {
    await claimOfSale(
      ctx,
      saleId,
      queued.filter((p) => p.saleId === saleId).map((p) => p.reference),
    );
  }
  return references.length;
}

async function claimOfSale(ctx: Context, saleId: string, references: string[]): Promise<void> {
  const claim = (some: string[]) => claimTogether(ctx, saleId, some);
  await withoutGuilty(claim, references, async (reference, error) => {
    ctx.log.error({ err: error, reference }, "a payment cannot be claimed for: its hold is given back");
    await settleHolds(ctx, await cancelQueued(ctx.db, [reference], UNUSABLE));
  });
}

async function claimTogether(ctx: Context, saleId: string, references: string[]): Promise<void> {
  const sale = await ctx.sales.get(saleId);
  if (!sale || sale.stoppedWhy !== null) return;
  const done = await around("cod.claim", () => claimAtOnce(ctx.db, saleId, references, sale.epoch));
  if (done === "OLD_EPOCH") {
    await ctx.sales.refresh(saleId);
  } else if (done === "NO_UNITS") {
    if (references.length > 1) for (const one of references) await claimTogether(ctx, saleId, [one]);
    else await settleHolds(ctx, await cancelQueued(ctx.db, references, NO_UNITS));
  } else {
    ctx.metrics.outcomes.inc({ stage: "charge", outcome: "captured" }, done.length);
    await settleHolds(ctx, done);
  }
}

export async function runBatches(ctx: Context, gateway: Gateway, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const n = await chargeBatch(ctx, gateway).catch((error) => {
      ctx.log.error({ err: error }, "cash on delivery batch stopped half-way; reconcile goes on with it");
      return 0;
    });
    await (n === 0 ? idle(ctx.work, "line", IDLE_MS, signal) : idle(ctx.work, "never", BATCH_PACE_MS, signal));
  }
}
