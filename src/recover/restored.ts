/**
 * A Postgres that was restored from an older copy, or a standby that was promoted without the newest commits, while
 * Redis and the gateway are newer. To go on would sell again what is sold already, so the sale stops until a person has
 * decided (rule Y, `fukubukuro recover`). Told by what only ever happens in Postgres first:
 *
 *   beat       a number raised once a second; Redis and every process remember the highest, and each new connection is
 *              asked for it
 *   position   how far the journal of a sale was committed; persist and rebuild compare it in the very transaction that
 *              moves it on
 *   confirmed  a hold is confirmed only after its capture was committed
 *   epoch      Redis is never of a later one than Postgres
 *   charges    the gateway's list has one for a sale of ours that Postgres has never heard of: all that is left when
 *              Redis was emptied, too
 *
 * The stop is a column beside the epoch: claims, payment rows, tombstones, the mirror and rebuild ask for it in their
 * own transaction.
 */
import { eq, sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { beats } from "../stores/schema.ts";
import { BEAT_ID, olderBeat, stopSelling } from "../stores/stop-selling.ts";
import { strayOf } from "./stray.ts";

const LISTS_MS_MAX = 5_000;

/**
 * Compares what Postgres has with what it was seen to have, and raises the beat. Marks first: what is committed later
 * can only be more.
 */
export async function checkRestored(ctx: Context): Promise<void> {
  const sales = ctx.sales.allKnown().filter((s) => s.stoppedWhy === null);
  const marks = await ctx.marks.read(sales.map((s) => s.id));
  const rows = await ctx.db.execute<{ sale_id: string; seq: string }>(sql`select sale_id, seq from journal_positions`);
  const [row] = await ctx.db
    .select({ beat: beats.beat, due: sql<boolean>`beaten_at not between now() - interval '1 second' and now()` })
    .from(beats)
    .where(eq(beats.id, BEAT_ID));
  const beat = row?.beat ?? 0;
  if (beat < marks.beat) return stopSelling(ctx, null, olderBeat(beat, marks.beat));
  for (const r of rows) {
    const seen = marks.positions.get(r.sale_id) ?? 0;
    if (Number(r.seq) < seen)
      await stopSelling(
        ctx,
        [r.sale_id],
        `Postgres has the journal of ${r.sale_id} up to ${r.seq}, and had it up to ${seen}`,
      );
  }
  ctx.marks.saw(
    marks.lost ? 0 : beat,
    rows.map((r) => ({ saleId: r.sale_id, seq: Number(r.seq) })),
  );
  // Nothing remembers how far Postgres was: the gateway's list is what is left to ask, once.
  if (marks.lost && beat > 0) await askLists(ctx);
  if (row && !row.due) return marks.lost ? ctx.marks.beaten(beat) : undefined;
  const [beaten] = await ctx.db.execute<{ beat: string }>(sql`
    insert into beats (id, beat) values (${BEAT_ID}, 1)
    on conflict (id) do update set beat = beats.beat + 1, beaten_at = now() where beats.beat = ${beat} returning beat`);
  if (beaten) await ctx.marks.beaten(Number(beaten.beat));
}

/** Every page of every gateway's list; a gateway that does not answer in time is left to reconcile's walk. */
async function askLists(ctx: Context): Promise<void> {
  const late = new Promise<"late">((resolve) => setTimeout(resolve, LISTS_MS_MAX, "late").unref());
  const looked = (async () => {
    for (const gateway of ctx.gateways.values()) {
      for (let after: string | null = null, more = true; more; ) {
        const page = await gateway.list(after, 500);
        await noteStray(ctx, gateway.name, await strayOf(ctx, page.charges));
        more = page.next !== null && page.next !== after && page.charges.length > 0;
        after = page.next;
      }
    }
    return "done";
  })().catch((error) => {
    ctx.log.warn(
      { err: error },
      "Redis has forgotten how far Postgres was, and a gateway's list cannot be read: reconcile reads it later",
    );
    return "failed";
  });
  if ((await Promise.race([looked, late])) === "late")
    ctx.log.warn(
      "Redis has forgotten how far Postgres was, and a gateway's list takes long: it is read behind the sale",
    );
}

/**
 * Writes down charges that Postgres has never heard of, and stops their sales: they stand for units that must not be
 * sold again.
 */
export async function noteStray(
  ctx: Context,
  gateway: string,
  found: Awaited<ReturnType<typeof strayOf>>,
): Promise<void> {
  for (const { charge: c, saleId, foreign } of found) {
    if (foreign) continue;
    await ctx.db.execute(sql`
      insert into stray_charges (gateway, reference, charge_id, reservation_id, amount, currency)
      values (${gateway}, ${c.reference}, ${c.id}, ${c.reservationId}, ${c.amount}, ${c.currency})
      on conflict do nothing`);
    if (saleId !== null && !ctx.sales.known(saleId)?.stoppedWhy)
      await stopSelling(
        ctx,
        [saleId],
        `The gateway ${gateway} captured ${c.reference} for ${saleId}, and Postgres has never heard of it`,
      );
  }
}
