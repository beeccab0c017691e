/** notify: sends what the outbox holds, after its order's commit, at least once, with a stable message id. */

import { and, eq, inArray, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { storable } from "../stores/refused.ts";
import { orderLines, orders, outbox } from "../stores/schema.ts";
import { confirmationMail, isRefused, type Mailer } from "./mail.ts";

type Needs = Pick<Context, "db" | "log" | "metrics" | "sales">;

export const MAIL_CONNECTIONS_MAX = 5;
const BATCH_MAX = 50;
/** Longer than the mail link's own time limits together, so that no two senders have one mail in hand. */
const LEASE_MS = 30_000;
const RETRY_MS = 2_000;
const RETRY_MS_MAX = 600_000;

/** A mail that cannot be made of its order: sending again will not help, and the others go on. */
class Unwritable extends Error {}
function written<T>(make: () => T): T {
  try {
    return make();
  } catch (error) {
    throw new Unwritable(`the mail cannot be written: ${String(error)}`, { cause: error });
  }
}

/** One batch; answers how many were sent. A row taken and not finished is taken again after its lease. */
export async function sendOnce(ctx: Needs, mailer: Mailer): Promise<number> {
  const taken = await ctx.db.execute<{ order_id: string; kind: string; language: string; attempts: number }>(sql`
    update outbox set next_at = now() + ${LEASE_MS} * interval '1 millisecond', attempts = attempts + 1
    where (order_id, kind) in
      (select order_id, kind from outbox where state = 'queued' and next_at <= now()
       order by next_at limit ${BATCH_MAX} for update skip locked)
    returning order_id, kind, language, attempts`);
  if (taken.length === 0) return 0;
  const ids = taken.map((t) => t.order_id);
  const rows = new Map((await ctx.db.select().from(orders).where(inArray(orders.id, ids))).map((o) => [o.id, o]));
  const lines = await ctx.db.select().from(orderLines).where(inArray(orderLines.orderId, ids));
  const queue = [...taken];
  let sent = 0;

  async function sendNext(): Promise<void> {
    for (let row = queue.shift(); row; row = queue.shift()) {
      const order = rows.get(row.order_id);
      const sale = order && (await ctx.sales.get(order.saleId));
      if (!order || !sale) continue;
      const mine = and(eq(outbox.orderId, row.order_id), eq(outbox.kind, row.kind));
      try {
        const mail = written(() =>
          confirmationMail({ ...order, lines: lines.filter((l) => l.orderId === order.id) }, sale, row.language),
        );
        await around("mail.send", () =>
          mailer.send({ id: `${order.id}.${row.kind}`, to: order.contact.email, ...mail }),
        );
        await around("outbox.sent", async () =>
          ctx.db.update(outbox).set({ state: "sent", sentAt: sql`now()`, lastError: null }).where(mine),
        );
        ctx.metrics.mails.inc({ result: "sent" });
        sent++;
      } catch (error) {
        const refused = isRefused(error) || error instanceof Unwritable;
        const waitMs = Math.min(RETRY_MS * 2 ** Math.min(row.attempts - 1, 10), RETRY_MS_MAX);
        ctx.metrics.mails.inc({ result: refused ? "refused" : "retried" });
        ctx.log.warn({ orderId: row.order_id, refused, code: (error as { code?: string }).code }, "mail not accepted");
        await ctx.db
          .update(outbox)
          .set({
            lastError: storable(String(error), 500),
            ...(refused ? { state: "failed" as const } : { nextAt: sql`now() + ${waitMs} * interval '1 millisecond'` }),
          })
          .where(mine);
      }
    }
  }
  await Promise.all(Array.from({ length: MAIL_CONNECTIONS_MAX }, sendNext));
  return sent;
}
