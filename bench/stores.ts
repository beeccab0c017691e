/**
 * The stores alone, without HTTP: the scripts on a Redis of their own, memory per hold, and persist on a Postgres of
 * its own.
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "drizzle-orm";
import { nanoid } from "nanoid";
import { pino } from "pino";
import postgres from "postgres";
import { compose } from "../src/compose.ts";
import { readConfig } from "../src/config.ts";
import type { Context } from "../src/context.ts";
import { makeReference } from "../src/domain/ids.ts";
import type { Sale } from "../src/domain/sale.ts";
import { createSale } from "../src/http/sale-changes.ts";
import { startRedis } from "../src/local/redis.ts";
import { claimAtOnce, insertPayments } from "../src/payments/rows.ts";
import { auditSale } from "../src/recover/audit.ts";
import { persistStage } from "../src/stages/persist.ts";
import { saleKeys } from "../src/stores/keys.ts";
import { connectRedis } from "../src/stores/redis.ts";
import { makeScripts } from "../src/stores/scripts.ts";
import { median, Wrong } from "./load.ts";

const CALLERS = 8;
const PER_BATCH_MAX = 128;
const SAMPLES = 10;
/** Reservations of which the time is taken, each time. */
const SAMPLE = 128 * 10;
const FEW_HOLDS = 1_000;
const skuOf = (i: number) => (i === 0 ? "bag" : `bag-${i}`);
const log = pino({ level: "silent" });

export interface ScriptResults {
  /** Reservations per second by batch, 8 callers. */
  perSecond: Record<number, number>;
  /** Of Redis memory, the customer's count included, the journal not. */
  bytesPerHold: number;
  /**
   * Redis' own time per reservation, microseconds, with so many live holds; `times`: that divided by
   * the same for a sale of a thousand holds, measured alternately.
   */
  growth: Array<{ holds: number; usec: number; times: number }>;
  skus: Array<{ skus: number; usec: number }>;
}

/** What reserve costs Redis. `long`: up to a million holds and a thousand items. */
export async function measureScripts(long: boolean, say: (line: string) => void): Promise<ScriptResults> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-bench-redis-"));
  const server = await startRedis(folder);
  const redis = connectRedis([server.url], log);
  try {
    const { runId } = await redis.ready(10_000);
    const scripts = makeScripts(redis);
    const settings = {
      shift: 0,
      pausedAt: 0,
      opensAt: 0,
      closesAt: 9e12,
      holdMs: 3_600_000,
      limit: 100,
      reserving: 1,
      version: 1,
    };
    let sales = 0;
    async function sale(skus: number) {
      const saleId = `s${++sales}`;
      const free = new Map(Array.from({ length: skus }, (_, i) => [skuOf(i), 1_000_000_000]));
      await scripts.install(saleId, {
        epoch: 1,
        seq: 0,
        runId,
        settings,
        free,
        holds: [],
        customers: new Map(),
        moves: [],
      });
      return saleId;
    }
    let made = 0;
    async function reserve(saleId: string, amount: number, batch: number, skus = 1): Promise<number> {
      let left = amount;
      const began = performance.now();
      async function caller() {
        while (left > 0) {
          const n = Math.min(batch, left);
          left -= n;
          const requests = Array.from({ length: n }, () => {
            const i = ++made;
            return { key: i.toString(36).padStart(22, "0"), customerId: `shopper-${i}`, lines: `${skuOf(i % skus)}:1` };
          });
          const { results } = await scripts.reserve(
            { saleId, epoch: 1, seqMin: 0, notAfterMs: 0 },
            { sweepMax: 0, journalMax: 1_000_000 },
            requests,
          );
          if (results.some((r) => r.outcome !== "HELD"))
            throw new Wrong("a reservation of the scripts alone was refused");
        }
      }
      await Promise.all(Array.from({ length: CALLERS }, caller));
      return amount / ((performance.now() - began) / 1000);
    }
    /** Redis' own time a reservation, of some thousand more. */
    async function usecOf(saleId: string, skus = 1): Promise<number> {
      await redis.client.call("CONFIG", "RESETSTAT");
      await reserve(saleId, SAMPLE, PER_BATCH_MAX, skus);
      const usec = /cmdstat_evalsha:calls=\d+,usec=(\d+)/.exec(
        await (redis.client as { info(s: string): Promise<string> }).info("commandstats"),
      )?.[1];
      return Number(usec) / SAMPLE;
    }
    /** The sale and a small one by turns: the machine is another one from minute to minute. */
    async function growthAt(saleId: string): Promise<{ usec: number; times: number }> {
      const [some, times]: [number[], number[]] = [[], []];
      for (let n = 0; n < SAMPLES; n++) {
        const small = await sale(1);
        await reserve(small, FEW_HOLDS, PER_BATCH_MAX);
        const few = await usecOf(small);
        const usec = await usecOf(saleId);
        some.push(usec);
        times.push(usec / few);
      }
      return { usec: median(some), times: median(times) };
    }
    const used = async () =>
      Number(
        /used_memory:(\d+)/.exec(await (redis.client as { info(s: string): Promise<string> }).info("memory"))?.[1],
      );

    const perSecond: Record<number, number> = {};
    for (const batch of [1, 16, PER_BATCH_MAX]) {
      perSecond[batch] = await reserve(await sale(1), batch === 1 ? 20_000 : 60_000, batch);
      say(
        `${`  scripts alone, ${batch} a call`.padEnd(36)}${Math.round(perSecond[batch]).toLocaleString("en").padStart(8)}/s`,
      );
    }
    await redis.client.flushall();
    const memorySale = await sale(1);
    const before = await used();
    await reserve(memorySale, 50_000, PER_BATCH_MAX);
    await redis.client.del(saleKeys(memorySale).journal);
    const bytesPerHold = ((await used()) - before) / 50_000;
    say(`  memory per live hold                ${Math.round(bytesPerHold).toString().padStart(8)} bytes`);
    await redis.client.flushall();
    const grown = await sale(1);
    const growth: ScriptResults["growth"] = [];
    let have = 0;
    for (const holds of long ? [FEW_HOLDS, 50_000, 250_000, 1_000_000] : [FEW_HOLDS, 100_000]) {
      await reserve(grown, holds - have, PER_BATCH_MAX);
      await redis.client.del(saleKeys(grown).journal);
      const { usec, times } = await growthAt(grown);
      have = holds + SAMPLES * SAMPLE;
      growth.push({ holds, usec, times });
      say(
        `${`  at ${holds.toLocaleString("en")} live holds`.padEnd(36)}${usec.toFixed(1).padStart(8)} us of Redis a reservation, x ${times.toFixed(2)} a small sale's`,
      );
    }
    await redis.client.flushall();
    const skus: ScriptResults["skus"] = [];
    for (const n of long ? [1, 10, 100, 1000] : [1, 100]) {
      const saleId = await sale(n);
      const some: number[] = [];
      for (let i = 0; i < SAMPLES; i++) some.push(await usecOf(saleId, n));
      const usec = median(some);
      skus.push({ skus: n, usec });
      say(`${`  with ${n} items`.padEnd(36)}${usec.toFixed(1).padStart(8)} us of Redis a reservation`);
    }
    return { perSecond, bytesPerHold, growth, skus };
  } finally {
    await redis.close();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

export interface PersistResults {
  orders: number;
  perSecond: number;
}

/**
 * persist alone: a journal full of reservations, payments and orders, written by one worker with nothing else to do, to
 * a database of its own.
 */
export async function measurePersist(databaseUrl: string, orders: number): Promise<PersistResults> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-bench-persist-"));
  const server = await startRedis(folder);
  const name = `bench_${nanoid(8)
    .replace(/[^A-Za-z0-9]/g, "x")
    .toLowerCase()}`;
  const admin = postgres(databaseUrl, { max: 1, onnotice: () => {} });
  await admin.unsafe(`create database ${name}`);
  const url = new URL(databaseUrl);
  url.pathname = `/${name}`;
  const env = {
    REDIS_URL: server.url,
    DATABASE_URL: url.href,
    GATEWAYS: "cod",
    ROLE: "api",
    SHOPPER_TOKEN_SECRET: "not used by persist",
  };
  const service = await compose(readConfig(env), log);
  try {
    const { ctx } = service;
    await ctx.redis.ready(5_000);
    const opensAt = new Date(Date.now() - 1000).toISOString();
    const { sale } = await createSale(ctx, {
      id: "persist",
      name: "Persist",
      currency: "JPY",
      holdMs: 3_600_000,
      maxUnitsPerCustomer: 10,
      gateways: ["cod"],
      opensAt,
      closesAt: new Date(Date.now() + 86_400_000).toISOString(),
      items: [{ sku: "bag", name: "Bag", unitPrice: 100, stock: orders }],
    });
    for (let from = 0; from < orders; from += PER_BATCH_MAX)
      await orderSome(ctx, sale, from, Math.min(orders, from + PER_BATCH_MAX));
    // What the scenarios before have left to be written is not this one's.
    await admin.unsafe("checkpoint");
    const persist = persistStage(ctx, "bench");
    const began = performance.now();
    while ((await persist(sale)) > 0);
    const seconds = (performance.now() - began) / 1000;
    const [row] = await ctx.db.execute<{ n: number }>(
      sql`select count(*)::int as n from orders where sale_id = ${sale.id}`,
    );
    if (row?.n !== orders) throw new Wrong(`persist alone wrote ${row?.n} of ${orders} orders`);
    const audit = await auditSale(ctx, sale.id, sale.no);
    if (!audit.ok) throw new Wrong(`after persist alone the books do not balance: ${JSON.stringify(audit)}`);
    return { orders, perSecond: orders / seconds };
  } finally {
    await service.close();
    await admin.unsafe(`drop database ${name} with (force)`);
    await admin.end();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

/** Reserved, paid on delivery and confirmed, up to the journal: what persist then finds. */
async function orderSome(ctx: Context, sale: Sale, from: number, to: number): Promise<void> {
  const some = Array.from({ length: to - from }, (_, i) => {
    const customerId = `p-${from + i}`;
    const key = ctx.ids.reservationKey(sale.no, customerId, "k");
    return { key, customerId, lines: "bag:1", reference: makeReference(Date.now()), referenceBefore: "" };
  });
  const { results } = await ctx.sales.call(sale, (s) =>
    ctx.scripts.reserve(s, { sweepMax: 0, journalMax: 1_000_000 }, some),
  );
  if (results.some((r) => r.outcome !== "HELD")) throw new Wrong("persist alone: a reservation was refused");
  await ctx.sales.call(sale, (s) => ctx.scripts.pay(s, some));
  const contact = { email: "bench@example.invalid", name: "Bench" };
  const lines = [{ sku: "bag", quantity: 1, unitPrice: 100, name: "Bag" }];
  await insertPayments(
    ctx.db,
    some.map((p) => ({
      reference: p.reference,
      saleId: sale.id,
      reservationKey: p.key,
      customerId: p.customerId,
      gateway: "cod",
      token: null,
      tokenDigest: "",
      reservationId: ctx.ids.reservationId(sale.no, p.customerId, p.key),
      amount: 100,
      currency: "JPY",
      lines,
      contact,
      language: "en",
      state: "queued",
    })),
  );
  const references = some.map((p) => p.reference);
  const claimed = await claimAtOnce(ctx.db, sale.id, references, sale.epoch);
  if (!Array.isArray(claimed) || claimed.length !== some.length) throw new Wrong("persist alone: a claim failed");
  await ctx.sales.call(sale, (s) => ctx.scripts.confirm(s, some));
}
