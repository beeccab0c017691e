/**
 * The stop of a sale while Postgres may be an older copy (recover/restored.ts): a column beside the epoch, for which
 * every write asks that must not happen meanwhile, and the fence in Redis.
 */
import { sql } from "drizzle-orm";
import type { Logger } from "pino";
import type { Sql } from "postgres";
import type { Sale } from "../domain/sale.ts";
import type { BeatSeen } from "./marks.ts";
import type { Db } from "./postgres.ts";
import type { Sales } from "./sales.ts";
import type { Scripts } from "./scripts.ts";

export interface Needs {
  db: Db;
  sales: Sales;
  scripts: Scripts;
  log: Logger;
}

/** The one row of beats. */
export const BEAT_ID = 1;

const sentence = (found: string) =>
  `${found}: was Postgres restored from an older copy? Selling stands until a person has run \`fukubukuro recover\`.`;
export const olderBeat = (has: number, seen: number) =>
  sentence(`Postgres is at beat ${has}, and was seen at ${seen} (about as many seconds)`);

/** For the pool: a new connection that leads to an older copy has every sale stopped there before anyone may use it. */
export function connectionCheck(seen: BeatSeen) {
  return async (connection: Sql): Promise<void> => {
    // What was seen before it was asked: the beat goes on while the answer is on its way.
    const before = seen.beat;
    if (before === 0) return;
    const [row] = await connection<{ beat: string }[]>`select beat from beats where id = ${BEAT_ID}`;
    const has = Number(row?.beat ?? 0);
    if (has < before)
      await connection`update epochs set stopped_why = ${olderBeat(has, before)} where stopped_why is null`;
  };
}

/** In Redis, too, so that nothing is granted by a process that has not heard of it yet. */
export async function fenceStopped(needs: Needs, sale: Sale): Promise<void> {
  const fence = (epoch: number) => needs.scripts.fence(sale.id, epoch, "stopped", 0);
  const fenced = await fence(sale.epoch);
  if (fenced.outcome === "NEWER" && fenced.epoch !== null) await fence(fenced.epoch);
}

/** Stops these sales, or all, durably. A reason that stands already is kept. */
export async function stopSelling(needs: Needs, saleIds: string[] | null, found: string): Promise<void> {
  const why = found.includes("fukubukuro recover") ? found : sentence(found);
  const stopped = await needs.db.execute<{ sale_id: string }>(sql`
    update epochs set stopped_why = ${why} where stopped_why is null
      and (${saleIds === null} or sale_id in (select json_array_elements_text(${JSON.stringify(saleIds ?? [])}::json)))
    returning sale_id`);
  if (stopped.length > 0) needs.log.error({ saleIds: stopped.map((s) => s.sale_id) }, why);
  for (const id of saleIds ?? needs.sales.allKnown().map((s) => s.id)) {
    const sale = await needs.sales.refresh(id);
    if (sale)
      await fenceStopped(needs, sale).catch((error) =>
        needs.log.debug({ err: error }, "Redis is fenced when it is back"),
      );
  }
}
