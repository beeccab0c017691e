/** persist alone, without HTTP, on a Redis and a database of its own. */

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
import { claimAtOnce } from "../src/payments/claim.ts";
import { insertPayments } from "../src/payments/rows.ts";
import { auditSale } from "../src/recover/audit.ts";
import { persistStage } from "../src/stages/persist.ts";
import { Wrong } from "./load.ts";

const PER_BATCH_MAX = 128;
const log = pino({ level: "silent" });

export interface PersistResults {
  orders: number;
  perSecond: number;
}

/**
 * A journal full of reservations, payments and orders, written by one worker with nothing else to do, to a database of
 * its own.
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
    const sale = await fillJournal(ctx, orders);
    // What the scenarios before have left to be written is not this one's.
    await admin.unsafe("checkpoint");
    return { orders, perSecond: orders / (await secondsOfPersist(ctx, sale, orders)) };
  } finally {
    await service.close();
    await admin.unsafe(`drop database ${name} with (force)`);
    await admin.end();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

async function fillJournal(ctx: Context, orders: number): Promise<Sale> {
  const { sale } = await createSale(ctx, {
    id: "persist",
    name: "Persist",
    currency: "JPY",
    holdMs: 3_600_000,
    maxUnitsPerCustomer: 10,
    gateways: ["cod"],
    opensAt: new Date(Date.now() - 1000).toISOString(),
    closesAt: new Date(Date.now() + 86_400_000).toISOString(),
    items: [{ sku: "bag", name: "Bag", unitPrice: 100, stock: orders }],
  });
  for (let from = 0; from < orders; from += PER_BATCH_MAX)
    await orderSome(ctx, sale, from, Math.min(orders, from + PER_BATCH_MAX));
  return sale;
}

/** Until the journal is empty; then every order is there and the books balance. */
async function secondsOfPersist(ctx: Context, sale: Sale, orders: number): Promise<number> {
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
  return seconds;
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
