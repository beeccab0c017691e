/** The loops of a worker process. Each has a bounded single step; `run` repeats the steps until the signal. */

import { sql } from "drizzle-orm";
import { nanoid } from "nanoid";
import type { Context } from "./context.ts";
import { Unavailable } from "./domain/errors.ts";
import { isOver, type Sale } from "./domain/sale.ts";
import type { Gateway } from "./gateways/port.ts";
import type { Mailer } from "./notify/mail.ts";
import { sendOnce } from "./notify/outbox.ts";
import { auditSale } from "./recover/audit.ts";
import { noteDenied } from "./recover/denied.ts";
import { walkCharges } from "./recover/late-money.ts";
import { lookUpOnce } from "./recover/open-payments.ts";
import { reconcileOnce } from "./recover/reconcile.ts";
import { refundOnce } from "./recover/refunds.ts";
import { checkRestored } from "./recover/restored.ts";
import { runBatches, runCharges } from "./stages/charge.ts";
import { expireOnce } from "./stages/expire.ts";
import { persistStage } from "./stages/persist.ts";
import { fenceStopped } from "./stores/stop-selling.ts";
import { idle, type WorkHint } from "./work-hints.ts";

/** Pause between batches: small ones would cost Postgres and this process many times more for the same rows. */
const PERSIST_PACE_MS = 60;
const RECONCILE_MS = 1_000;
const WALK_MS = 30_000;
const WALK_AGAIN_MS = 3_000;
const LOOK_UP_MS = 500;
const REFUND_MS = 1_000;
const OUTBOX_IDLE_MS = 500;
const BUSY = 0.8;
const BUSY_CHECK_MS = 100;
const MAIL_GIVES_WAY_MS = 2_000;
const SALES_MS = 1_000;
const AUDIT_MS = 15_000;
const AUDIT_OVER_MS = 600_000;

/**
 * Repeats a step; one that fails is logged and tried again after its pause, so that a store that is away stops nothing
 * else.
 */
async function repeat(
  ctx: Context,
  name: string,
  hint: WorkHint | "never",
  pauseMs: number,
  signal: AbortSignal,
  step: () => Promise<number>,
): Promise<void> {
  while (!signal.aborted) {
    let more = 0;
    try {
      more = await step();
    } catch (error) {
      if (error instanceof Unavailable) ctx.log.debug({ err: error }, `${name} waits`);
      else ctx.log.error({ err: error }, `${name} failed; it is tried again`);
      await idle(ctx.work, "never", Math.max(pauseMs, 200), signal);
      continue;
    }
    if (more === 0) await idle(ctx.work, hint, pauseMs, signal);
  }
}

/** Learns of sales, settings and epochs that other processes wrote. Every process runs it. */
export function watchSales(ctx: Context, signal: AbortSignal): Promise<void> {
  return repeat(ctx, "watching sales", "never", SALES_MS, signal, async () => {
    const rows = await ctx.db.execute<{ id: string; version: number; epoch: number; stopped_why: string | null }>(
      sql`select s.id, s.version, e.epoch, e.stopped_why from sales s join epochs e on e.sale_id = s.id`,
    );
    for (const r of rows) {
      const known = ctx.sales.known(r.id);
      if (!known || known.version !== r.version || known.epoch !== r.epoch || known.stoppedWhy !== r.stopped_why) {
        ctx.sales.forgetUnknown(r.id);
        const sale = await ctx.sales.refresh(r.id);
        if (sale && sale.stoppedWhy !== null) {
          ctx.log.error({ saleId: sale.id }, sale.stoppedWhy);
          await fenceStopped(ctx, sale);
        }
      }
    }
    await checkRestored(ctx);
    return 0;
  });
}

/** Mails give way to orders: while this process is busy the next batch waits, but not longer than a moment. */
async function quieter(ctx: Context, signal: AbortSignal): Promise<void> {
  let before = performance.eventLoopUtilization();
  for (let waited = 0; waited < MAIL_GIVES_WAY_MS; waited += BUSY_CHECK_MS) {
    await idle(ctx.work, "never", BUSY_CHECK_MS, signal);
    const now = performance.eventLoopUtilization();
    if (performance.eventLoopUtilization(now, before).utilization < BUSY) return;
    before = now;
  }
}

async function publishGauges(ctx: Context, sales: Sale[]): Promise<void> {
  for (const sale of sales) {
    // One reading of the gateway's list for all of them.
    const audit = await auditSale(ctx, sale.id, sale.no, AUDIT_MS / 2);
    if (!audit.ok) ctx.log.error({ audit }, "the books of a sale do not balance");
    await noteDenied(ctx, audit);
    ctx.metrics.books.set({ sale: sale.id }, audit.ok ? 1 : 0);
    for (const i of audit.items) {
      for (const count of ["granted", "free", "held", "claimed", "sold", "difference"] as const)
        ctx.metrics.units.set({ sale: sale.id, sku: i.sku, count }, i[count]);
    }
    const open = {
      paying: audit.open.paying,
      unknown: audit.open.unknown,
      journal_lag: audit.open.journalLag,
      refunding: audit.open.refunding,
      attention: audit.open.attention,
      mails_queued: audit.mails.queued,
    };
    for (const [kind, n] of Object.entries(open)) ctx.metrics.open.set({ sale: sale.id, kind }, n);
  }
  for (const gateway of ctx.gates.keys()) {
    const view = await ctx.scripts.gateView(gateway);
    ctx.metrics.gateInFlight.set({ gateway }, view.inFlight);
    ctx.metrics.gateLine.set({ gateway }, view.line);
    for (const [kind, n] of Object.entries(view.permits)) ctx.metrics.gatePermits.set({ gateway, kind }, n);
  }
}

/** The sales that a loop visits now: those that are over only every so often. */
function visits(ctx: Context, overEveryMs: number): () => Sale[] {
  let lastAll = 0;
  return () => {
    const all = ctx.sales.allKnown();
    if (Date.now() - lastAll < overEveryMs) return all.filter((s) => !isOver(s));
    lastAll = Date.now();
    return all;
  };
}

/** For all of them side by side: one that waits for its rebuild stops no other. */
async function eachSale(sales: Sale[], f: (sale: Sale) => Promise<unknown>): Promise<void> {
  const results = await Promise.allSettled(sales.map(f));
  const failed = results.find((r) => r.status === "rejected");
  if (failed) throw failed.reason;
}

/** A walk that stopped half-way, at a lost answer or a store that was away, is not put off by a whole round. */
function walkOf(ctx: Context, gateway: Gateway, signal: AbortSignal): Promise<void> {
  let walkedAt = Number.NEGATIVE_INFINITY;
  return repeat(ctx, `the walk of ${gateway.name}`, "never", WALK_AGAIN_MS, signal, async () => {
    if (performance.now() - walkedAt < WALK_MS) return 0;
    await walkCharges(ctx, gateway);
    walkedAt = performance.now();
    return 0;
  });
}

/** Runs everything a worker does until the signal; resolves when all of it has come to rest. */
export async function runWorkers(ctx: Context, mailer: Mailer | null, signal: AbortSignal): Promise<void> {
  const persist = persistStage(ctx, `persist-${nanoid(8)}`);
  let lastWalk = 0;
  const [toPersist, toSweep, toAudit] = [visits(ctx, WALK_MS), visits(ctx, WALK_MS), visits(ctx, AUDIT_OVER_MS)];
  await Promise.all([
    ...[...ctx.gateways.values()].map((g) => {
      const gate = ctx.gates.get(g.name);
      return gate ? runCharges(ctx, g, gate, signal) : runBatches(ctx, g, signal);
    }),
    repeat(ctx, "persist", "never", PERSIST_PACE_MS, signal, async () => {
      await eachSale(toPersist(), (sale) => persist(sale, signal));
      return 0;
    }),
    ctx.config.sweepMs > 0
      ? repeat(ctx, "sweeper", "never", ctx.config.sweepMs, signal, async () => {
          await eachSale(toSweep(), (sale) => expireOnce(ctx, sale));
          return 0;
        })
      : undefined,
    repeat(ctx, "reconcile", "never", RECONCILE_MS, signal, async () => {
      const walk = Date.now() - lastWalk > WALK_MS;
      await reconcileOnce(ctx, { walk, asking: false });
      if (walk) lastWalk = Date.now();
      return 0;
    }),
    // What asks a gateway waits for its permits, and nothing else waits for it.
    repeat(ctx, "look-ups", "look", LOOK_UP_MS, signal, async () => {
      await lookUpOnce(ctx);
      return 0;
    }),
    repeat(ctx, "refunds", "refund", REFUND_MS, signal, async () => {
      await refundOnce(ctx);
      return 0;
    }),
    ...[...ctx.gateways.values()].map((g) => walkOf(ctx, g, signal)),
    repeat(ctx, "audit", "never", AUDIT_MS, signal, async () => {
      await publishGauges(ctx, toAudit());
      return 0;
    }),
    mailer
      ? repeat(ctx, "outbox", "outbox", OUTBOX_IDLE_MS, signal, async () => {
          await quieter(ctx, signal);
          const sent = await sendOnce(ctx, mailer);
          // Mail servers accept only so many a second, and a mail can wait.
          if (sent > 0) await idle(ctx.work, "never", (sent * 1000) / ctx.config.mailRatePerS, signal);
          return sent;
        })
      : undefined,
  ]);
}
