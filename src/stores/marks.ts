/**
 * What Postgres was seen to have, remembered outside of it: in Redis and in this process. Each number is written down
 * only after Postgres has committed it, so a Postgres that has less is an older copy of itself (recover/restored.ts).
 * Redis may forget a mark or have an older one: that makes an older copy harder to notice, never a false alarm.
 */

import { Unavailable } from "../domain/errors.ts";
import { MARKS_KEY } from "./keys.ts";
import type { Redis } from "./redis.ts";

/** The beat of the database; shared with the pool, which asks every new connection for it. */
export interface BeatSeen {
  beat: number;
}

export type Marks = ReturnType<typeof makeMarks>;

/** `database` tells databases apart that share one Redis; a copy of a database has the name of the original. */
export function makeMarks(redis: Redis, database: string, seen: BeatSeen) {
  const positions = new Map<string, number>();
  const ofBeat = `${database}:beat`;
  const ofSale = (saleId: string) => `${database}:seq:${saleId}`;

  async function read(saleIds: string[]): Promise<{ beat: number; positions: Map<string, number>; lost: boolean }> {
    const members = [ofBeat, ...saleIds.map(ofSale)];
    const scores = await redis.client.zmscore(MARKS_KEY, ...members).catch((error) => {
      throw new Unavailable("Redis does not answer", 1000, { cause: error });
    });
    const [beat, ...of] = scores.map((s) => Number(s ?? 0));
    const found = {
      beat: Math.max(beat as number, seen.beat),
      positions: new Map(saleIds.map((id, i) => [id, Math.max(of[i] as number, positions.get(id) ?? 0)])),
      lost: scores[0] === null && seen.beat === 0,
    };
    // A Redis that was emptied learns again what this process knows.
    if (found.beat > (beat as number)) await put(ofBeat, found.beat);
    for (const [i, id] of saleIds.entries()) {
      const known = positions.get(id) ?? 0;
      if (known > (of[i] as number)) await put(ofSale(id), known);
    }
    return found;
  }

  // GT: a mark only rises, whoever comes late.
  const put = (member: string, n: number) => redis.client.zadd(MARKS_KEY, "GT", n, member);

  return {
    read,
    async position(saleId: string): Promise<number> {
      return (await read([saleId])).positions.get(saleId) as number;
    },
    /** Postgres has this much: kept by this process alone, for its next connection and for a Redis that forgets. */
    saw(beat: number, ofSales: Array<{ saleId: string; seq: number }>): void {
      seen.beat = Math.max(seen.beat, beat);
      for (const { saleId, seq } of ofSales) positions.set(saleId, Math.max(positions.get(saleId) ?? 0, seq));
    },
    /** Postgres has committed the journal of this sale up to here. */
    async reached(saleId: string, seq: number): Promise<void> {
      positions.set(saleId, Math.max(positions.get(saleId) ?? 0, seq));
      await put(ofSale(saleId), seq);
    },
    async beaten(beat: number): Promise<void> {
      seen.beat = Math.max(seen.beat, beat);
      await put(ofBeat, beat);
    },
  };
}
