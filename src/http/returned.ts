/**
 * The shopper at the gateway's page is looked up seldom; whoever asks about the reservation may have come back, and
 * then the look-up is due now. A hint only: what became of the payment is the gateway's to say. How often one payment
 * can be hurried grows with its age.
 */
import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { payments } from "../stores/schema.ts";

const HURRY_MS = 2_000;
const REMEMBERED_MAX = 20_000;

export type Returned = ReturnType<typeof makeReturned>;

export function makeReturned(ctx: Context) {
  /** References this process has hurried, and when: asking over and over costs Postgres nothing. */
  const hurried = new Map<string, number>();
  const coming = new Map<string, NodeJS.Timeout>();

  async function hurry(reference: string): Promise<void> {
    const gap = sql`greatest(${HURRY_MS} * interval '1 millisecond', (now() - coalesce(first_sent_at, queued_at)) / 8)`;
    const due = sql`greatest(now(), coalesce(looked_at, '-infinity') + ${gap})`;
    const [row] = await ctx.db
      .update(payments)
      .set({ checkAt: due })
      .where(sql`reference = ${reference} and state in ('action_required', 'unknown') and check_at > ${due}`)
      .returning({ reference: payments.reference });
    if (row) ctx.work.emit("look");
  }

  return function ask(reference: string): void {
    const waitMs = HURRY_MS - (performance.now() - (hurried.get(reference) ?? Number.NEGATIVE_INFINITY));
    if (waitMs > 0) {
      // Not lost: who came back within a moment of the last question is asked for after it.
      if (!coming.has(reference))
        coming.set(reference, setTimeout(() => coming.delete(reference) && ask(reference), waitMs).unref());
      return;
    }
    if (hurried.size >= REMEMBERED_MAX) hurried.clear();
    hurried.set(reference, performance.now());
    hurry(reference).catch((error) => ctx.log.debug({ err: error, reference }, "the look-up comes at its own time"));
  };
}
