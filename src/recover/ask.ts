/**
 * A call to a gateway other than a charge: it waits for its permit, makes sure that there is still something to ask,
 * asks, and gives the permit back.
 */
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { UrgentUse } from "../gateways/gate.ts";
import type { Gateway, GatewayAnswer } from "../gateways/port.ts";
import type { Payment } from "../payments/rows.ts";
import { settlePayment } from "../payments/settle.ts";
import { actionLookMs, askGateway } from "../stages/charge.ts";

const PERMIT_WAIT_MS = 1_500;

export interface Asked {
  asked: Payment;
  answer: GatewayAnswer;
}

/**
 * `ready` runs under the permit and answers the payment as it is taken over, or null: then nobody is asked. "BUSY" when
 * no permit came free in time: nothing was taken over, and whoever works off a list leaves the rest of it for the next
 * round.
 */
export async function ask(
  ctx: Context,
  gateway: Gateway,
  use: UrgentUse,
  kind: "charge" | "lookUp" | "cancel" | "refund",
  ready: () => Promise<Payment | null>,
  call: (p: Payment) => Promise<GatewayAnswer>,
): Promise<Asked | "BUSY" | null> {
  const gate = ctx.gates.get(gateway.name);
  if (!gate) {
    const asked = await ready();
    return asked && { asked, answer: (await askGateway(ctx, gateway, kind, () => call(asked))).answer };
  }
  const permit = await gate.takeUrgent(use, PERMIT_WAIT_MS, ctx.draining);
  if (!permit) return "BUSY";
  let asked: Payment | null = null;
  try {
    asked = permit.covers() ? await ready() : null;
  } finally {
    if (!asked) await gate.settle(permit, null, null);
  }
  if (!asked) return null;
  // Rule E, again just before the send: what was taken over and is not asked comes up again by itself.
  if (!permit.covers()) {
    await gate.settle(permit, null, null);
    return null;
  }
  const payment = asked;
  const { answer, callMs } = await askGateway(ctx, gateway, kind, () => call(payment));
  await gate.settle(permit, answer, callMs);
  return { asked, answer };
}

/** A call that speaks of no payment in Postgres; null when no permit came free in time: nobody was asked. */
export async function askAlone(
  ctx: Context,
  gateway: Gateway,
  use: UrgentUse,
  kind: "lookUp" | "cancel",
  call: () => Promise<GatewayAnswer>,
): Promise<GatewayAnswer | null> {
  const gate = ctx.gates.get(gateway.name);
  if (!gate) return (await askGateway(ctx, gateway, kind, call)).answer;
  const permit = await gate.takeUrgent(use, PERMIT_WAIT_MS, ctx.draining);
  if (!permit) return null;
  if (!permit.covers()) {
    await gate.settle(permit, null, null);
    return null;
  }
  const { answer, callMs } = await askGateway(ctx, gateway, kind, call);
  await gate.settle(permit, answer, callMs);
  return answer;
}

/** Writes down what was said of an open payment. */
export async function record(ctx: Context, asked: Payment, answer: GatewayAnswer): Promise<Payment> {
  const lookMs = answer.outcome === "action_required" ? await actionLookMs(ctx, asked.gateway) : undefined;
  return around("reconcile.outcome", () => settlePayment(ctx.db, asked, answer, ctx.config.actionDeadlineMs, lookMs));
}

/** Works off a list side by side: at most `width` at once, and none of a gateway that had no permit left. */
export async function eachDue<T extends { gateway: string }>(
  due: T[],
  width: number,
  work: (one: T) => Promise<"BUSY" | boolean>,
): Promise<number> {
  const busy = new Set<string>();
  let done = 0;
  const next = async (): Promise<void> => {
    for (let one = due.shift(); one; one = due.shift()) {
      if (busy.has(one.gateway)) continue;
      const result = await work(one);
      if (result === "BUSY") busy.add(one.gateway);
      else if (result) done++;
    }
  };
  await Promise.all(Array.from({ length: width }, next));
  return done;
}

const WIDTH_MAX = 16;
/** As many as the widest gate takes; the permits keep the order. */
export const widthOf = (ctx: Context) =>
  Math.min(WIDTH_MAX, Math.max(4, ...[...ctx.gates.values()].map((g) => g.limit)));
