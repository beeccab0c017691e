/**
 * The last step of recover: Postgres takes over what Redis knows better, the stop is lifted, and Redis is rebuilt from
 * it.
 */
import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { type Hold, letterOf } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import { saleKeys } from "../stores/keys.ts";
import type { Tx } from "../stores/postgres.ts";
import { rebuildSale } from "./rebuild.ts";

/**
 * Holds that were granted after the copy was made, as the journal would have mirrored them. A row of the mirror moves
 * only forward.
 */
async function mirrorAll(tx: Tx, saleId: string, holds: Map<string, Hold>, epoch: number, seq: number): Promise<void> {
  const rows = [...holds].map(([key, h]) => ({
    key,
    customer_id: h.customerId,
    state: letterOf(h.state),
    lines: h.lines,
    reference: h.reference,
    deadline_ms: h.deadlineMs,
  }));
  await tx.execute(sql`
    insert into reservations (sale_id, key, customer_id, state, lines, reference, deadline_ms, epoch, seq,
      held_at, changed_at)
    select ${saleId}, r.key, r.customer_id, r.state, r.lines, r.reference, r.deadline_ms, ${epoch}, ${seq}, now(), now()
    from json_to_recordset(${JSON.stringify(rows)}::json) as r(key text, customer_id text, state text, lines text,
      reference text, deadline_ms bigint)
    order by r.key
    on conflict (sale_id, key) do update set state = excluded.state, reference = excluded.reference,
      deadline_ms = excluded.deadline_ms, epoch = excluded.epoch, seq = excluded.seq, changed_at = excluded.changed_at
    where (excluded.epoch, excluded.seq) > (reservations.epoch, reservations.seq)`);
}

/** Everything is accounted for: Postgres counts on from where Redis saw it last, and the sale goes on. */
export async function goOn(ctx: Context, sale: Sale, holds: Map<string, Hold>): Promise<void> {
  const marks = await ctx.marks.read([sale.id]);
  const [e, s] = await ctx.redis.client.hmget(saleKeys(sale.id).sale, "epoch", "seq");
  const [epoch, seq] = [Number(e ?? 0), Number(s ?? 0)];
  const position = Math.max(seq, marks.positions.get(sale.id) ?? 0);
  await ctx.db.transaction(async (tx) => {
    await tx.execute(sql`select 1 from epochs where sale_id = ${sale.id} for update`);
    if (holds.size > 0) await mirrorAll(tx, sale.id, holds, epoch, seq);
    await tx.execute(sql`update journal_positions set seq = greatest(seq, ${position}) where sale_id = ${sale.id}`);
    await tx.execute(sql`
      insert into beats (id, beat) values (1, ${marks.beat})
      on conflict (id) do update set beat = greatest(beats.beat, excluded.beat)`);
    await tx.execute(
      sql`update epochs set epoch = greatest(epoch, ${epoch}), stopped_why = null where sale_id = ${sale.id}`,
    );
  });
  await ctx.sales.refresh(sale.id);
  await rebuildSale(ctx, sale.id, { force: true });
}
