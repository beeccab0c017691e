/**
 * confirm and decline: brings the hold in line with what is stored of its payment (rules B, C and D): captured ->
 * confirmed, declined or cancelled -> held again. Used after every outcome, and by reconcile after every crash.
 */

import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import type { Sale } from "../domain/sale.ts";
import { leavesHold, NO_UNITS, NOT_WRITTEN, type PaymentOutcome, UNUSABLE } from "../payments/rows.ts";

type Needs = Pick<Context, "config" | "log" | "metrics" | "sales" | "scripts">;

/**
 * Nobody was asked for money: the hold goes on with the time it had when it was pinned. A grace would let whoever sends
 * what cannot be stored keep it for ever; less would let a shopper lose a bag because a process of ours ended.
 */
const earnsNoGrace = (p: PaymentOutcome) => p.declineCode === NOT_WRITTEN || p.declineCode === UNUSABLE;

/** Safe to repeat: the scripts do nothing unless the hold speaks of this very payment. */
export async function settleHolds(ctx: Needs, payments: PaymentOutcome[]): Promise<void> {
  const bySale = new Map<string, PaymentOutcome[]>();
  for (const p of payments) bySale.set(p.saleId, [...(bySale.get(p.saleId) ?? []), p]);
  for (const [saleId, ofSale] of bySale) {
    const sale = await ctx.sales.get(saleId);
    // A sale that stands is rebuilt from its payments when it goes on.
    if (!sale || sale.stoppedWhy !== null) continue;
    const captured = ofSale.filter((p) => p.state === "captured");
    if (captured.length > 0) await confirmCaptured(ctx, sale, captured, true);
    const ended = ofSale.filter(leavesHold);
    if (ended.length > 0) {
      const requests = ended.map((p) => ({
        key: p.reservationKey,
        reference: p.reference,
        graceMs: earnsNoGrace(p) ? 0 : ctx.config.retryGraceMs,
        to: p.declineCode === NO_UNITS ? ("released" as const) : ("held" as const),
      }));
      const { results } = await around("decline.redis", () =>
        ctx.sales.call(sale, (s) => ctx.scripts.decline(s, requests)),
      );
      for (const r of results) ctx.metrics.outcomes.inc({ stage: "decline", outcome: r.outcome });
    }
  }
}

async function confirmCaptured(
  ctx: Needs,
  sale: Sale,
  captured: PaymentOutcome[],
  mayPinAgain: boolean,
): Promise<void> {
  const requests = captured.map((p) => ({ key: p.reservationKey, reference: p.reference }));
  const { results } = await around("confirm.redis", () =>
    ctx.sales.call(sale, (s) => ctx.scripts.confirm(s, requests)),
  );
  const unpinned: Array<{ payment: PaymentOutcome; customerId: string }> = [];
  results.forEach((r, i) => {
    const payment = captured[i] as PaymentOutcome;
    ctx.metrics.outcomes.inc({ stage: "confirm", outcome: r.outcome });
    if (r.outcome === "CONFIRMED") return;
    // Late money was honoured, and an earlier decline reached the hold in between: it is held for its grace, and pinned
    // again.
    if (
      r.outcome === "OTHER_PAYMENT" &&
      r.hold.state === "held" &&
      r.hold.reference === payment.reference &&
      mayPinAgain
    )
      unpinned.push({ payment, customerId: r.hold.customerId });
    // The order does not depend on the hold: reconcile records it from the payment's snapshot.
    else ctx.log.warn({ reference: payment.reference, outcome: r.outcome }, "captured, but the hold speaks otherwise");
  });
  if (unpinned.length === 0) return;
  const pins = unpinned.map(({ payment: p, customerId }) => ({
    key: p.reservationKey,
    customerId,
    reference: p.reference,
    referenceBefore: p.reference,
  }));
  await ctx.sales.call(sale, (s) => ctx.scripts.pay(s, pins));
  await confirmCaptured(
    ctx,
    sale,
    unpinned.map((u) => u.payment),
    false,
  );
}
