/** The scripts alone, on a Redis of their own: what reserve costs Redis, and memory per hold. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { startRedis } from "../src/local/redis.ts";
import { saleKeys } from "../src/stores/keys.ts";
import { connectRedis, type Redis } from "../src/stores/redis.ts";
import { makeScripts } from "../src/stores/scripts.ts";
import { median, Wrong } from "./load.ts";

const CALLERS = 8;
const PER_BATCH_MAX = 128;
const SAMPLES = 10;
/** Reservations of which the time is taken, each time. */
const SAMPLE = 128 * 10;
const FEW_HOLDS = 1_000;
const HOLDS_WEIGHED = 50_000;
const skuOf = (i: number) => (i === 0 ? "bag" : `bag-${i}`);

type Say = (line: string) => void;
export interface ScriptResults {
  /** Reservations per second by batch, 8 callers. */
  perSecond: Record<number, number>;
  /** Of Redis memory, the customer's count included, the journal not. */
  bytesPerHold: number;
  /**
   * Redis' own time per reservation, microseconds, at so many live holds; `times` what it is at a sale of a thousand,
   * measured by turns.
   */
  growth: Array<{ holds: number; usec: number; times: number }>;
  skus: Array<{ skus: number; usec: number }>;
}

/** What reserve costs Redis. `long`: up to a million holds and a thousand items. */
export async function measureScripts(long: boolean, say: Say): Promise<ScriptResults> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-bench-redis-"));
  const server = await startRedis(folder);
  const redis = connectRedis([server.url], pino({ level: "silent" }));
  try {
    const { runId } = await redis.ready(10_000);
    const bench = new ScriptBench(redis, runId);
    const perSecond = await perSecondByBatch(bench, say);
    await redis.client.flushall();
    const bytesPerHold = await memoryPerHold(bench, say);
    await redis.client.flushall();
    const growth = await growthByHolds(
      bench,
      long ? [FEW_HOLDS, 50_000, 250_000, 1_000_000] : [FEW_HOLDS, 100_000],
      say,
    );
    await redis.client.flushall();
    const skus = await usecBySkus(bench, long ? [1, 10, 100, 1000] : [1, 100], say);
    return { perSecond, bytesPerHold, growth, skus };
  } finally {
    await redis.close();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

async function perSecondByBatch(bench: ScriptBench, say: Say): Promise<ScriptResults["perSecond"]> {
  const perSecond: Record<number, number> = {};
  for (const batch of [1, 16, PER_BATCH_MAX]) {
    const figure = await bench.reserve(await bench.sale(1), batch === 1 ? 20_000 : 60_000, batch);
    perSecond[batch] = figure;
    const name = `  scripts alone, ${batch} a call`.padEnd(36);
    say(`${name}${Math.round(figure).toLocaleString("en").padStart(8)}/s`);
  }
  return perSecond;
}

async function memoryPerHold(bench: ScriptBench, say: Say): Promise<number> {
  const saleId = await bench.sale(1);
  const before = await bench.usedMemory();
  await bench.reserve(saleId, HOLDS_WEIGHED, PER_BATCH_MAX);
  await bench.dropJournal(saleId);
  const bytes = ((await bench.usedMemory()) - before) / HOLDS_WEIGHED;
  say(`  memory per live hold                ${Math.round(bytes).toString().padStart(8)} bytes`);
  return bytes;
}

async function growthByHolds(bench: ScriptBench, steps: number[], say: Say): Promise<ScriptResults["growth"]> {
  const grown = await bench.sale(1);
  const growth: ScriptResults["growth"] = [];
  let have = 0;
  for (const holds of steps) {
    await bench.reserve(grown, holds - have, PER_BATCH_MAX);
    await bench.dropJournal(grown);
    const { usec, times } = await bench.besideSmallSale(grown);
    have = holds + SAMPLES * SAMPLE;
    growth.push({ holds, usec, times });
    const name = `  at ${holds.toLocaleString("en")} live holds`.padEnd(36);
    say(`${name}${usec.toFixed(1).padStart(8)} us of Redis a reservation, x ${times.toFixed(2)} a small sale's`);
  }
  return growth;
}

async function usecBySkus(bench: ScriptBench, steps: number[], say: Say): Promise<ScriptResults["skus"]> {
  const skus: ScriptResults["skus"] = [];
  for (const n of steps) {
    const saleId = await bench.sale(n);
    const some: number[] = [];
    for (let i = 0; i < SAMPLES; i++) some.push(await bench.usecOf(saleId, n));
    const usec = median(some);
    skus.push({ skus: n, usec });
    say(`${`  with ${n} items`.padEnd(36)}${usec.toFixed(1).padStart(8)} us of Redis a reservation`);
  }
  return skus;
}

class ScriptBench {
  private readonly scripts: ReturnType<typeof makeScripts>;
  private sales = 0;
  private made = 0;

  constructor(
    private readonly redis: Redis,
    private readonly runId: string,
  ) {
    this.scripts = makeScripts(redis);
  }

  /** A new one with so many items, whose stock does not end. */
  async sale(skus: number): Promise<string> {
    const saleId = `s${++this.sales}`;
    await this.scripts.install(saleId, {
      epoch: 1,
      seq: 0,
      runId: this.runId,
      settings: {
        shift: 0,
        pausedAt: 0,
        opensAt: 0,
        closesAt: 9e12,
        holdMs: 3_600_000,
        limit: 100,
        reserving: 1,
        version: 1,
      },
      free: new Map(Array.from({ length: skus }, (_, i) => [skuOf(i), 1_000_000_000])),
      holds: [],
      customers: new Map(),
      moves: [],
    });
    return saleId;
  }

  /** By so many callers at once; answers how many a second. */
  async reserve(saleId: string, amount: number, batch: number, skus = 1): Promise<number> {
    let left = amount;
    const began = performance.now();
    const caller = async () => {
      while (left > 0) {
        const n = Math.min(batch, left);
        left -= n;
        await this.reserveSome(saleId, n, skus);
      }
    };
    await Promise.all(Array.from({ length: CALLERS }, caller));
    return amount / ((performance.now() - began) / 1000);
  }

  private async reserveSome(saleId: string, amount: number, skus: number): Promise<void> {
    const requests = Array.from({ length: amount }, () => {
      const i = ++this.made;
      return { key: i.toString(36).padStart(22, "0"), customerId: `shopper-${i}`, lines: `${skuOf(i % skus)}:1` };
    });
    const { results } = await this.scripts.reserve(
      { saleId, epoch: 1, seqMin: 0, notAfterMs: 0 },
      { sweepMax: 0, journalMax: 1_000_000 },
      requests,
    );
    if (results.some((r) => r.outcome !== "HELD")) throw new Wrong("a reservation of the scripts alone was refused");
  }

  /** Redis' own time a reservation, of some thousand more. */
  async usecOf(saleId: string, skus = 1): Promise<number> {
    await this.redis.client.call("CONFIG", "RESETSTAT");
    await this.reserve(saleId, SAMPLE, PER_BATCH_MAX, skus);
    return (await this.info("commandstats", /cmdstat_evalsha:calls=\d+,usec=(\d+)/)) / SAMPLE;
  }

  /** The sale and a small one by turns: the machine is another one from minute to minute. */
  async besideSmallSale(saleId: string): Promise<{ usec: number; times: number }> {
    const [some, times]: [number[], number[]] = [[], []];
    for (let n = 0; n < SAMPLES; n++) {
      const small = await this.sale(1);
      await this.reserve(small, FEW_HOLDS, PER_BATCH_MAX);
      const few = await this.usecOf(small);
      const usec = await this.usecOf(saleId);
      some.push(usec);
      times.push(usec / few);
    }
    return { usec: median(some), times: median(times) };
  }

  usedMemory = () => this.info("memory", /used_memory:(\d+)/);
  dropJournal = (saleId: string) => this.redis.client.del(saleKeys(saleId).journal);

  private async info(section: string, figure: RegExp): Promise<number> {
    const text = await (this.redis.client as { info(s: string): Promise<string> }).info(section);
    return Number(figure.exec(text)?.[1]);
  }
}
