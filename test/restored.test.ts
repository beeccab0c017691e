/**
 * Postgres restored from an older copy while Redis and the gateway are newer: selling stops, and a person has a way out
 * that forgets no charge.
 */
import { eq } from "drizzle-orm";
import postgres, { type Sql } from "postgres";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { PostgresOlder } from "../src/domain/errors.ts";
import { startRedis } from "../src/local/redis.ts";
import { rebuildSale } from "../src/recover/rebuild.ts";
import { recover } from "../src/recover/recover.ts";
import { recordConfirmed } from "../src/stages/persist.ts";
import { epochs, orders } from "../src/stores/schema.ts";
import { connectionCheck } from "../src/stores/stop-selling.ts";
import { makeRestoreWorld, type RestoreWorld } from "./restored.ts";
import { call, inParallel, operator, type Running, saleBodyOf, shopper, until } from "./support.ts";

let world: RestoreWorld;
let api: Running;
beforeEach(async () => {
  world = await makeRestoreWorld();
  api = await world.serve();
});
afterEach(() => world.close());

const UNITS = 60;
type Payment = Record<string, string>;
const [CARD, CASH]: [Payment, Payment] = [{ token: "tok_ok" }, { gateway: "cod" }];

async function makeSale(unitPrice = 1_000): Promise<string> {
  const sale = saleBodyOf({ items: [{ sku: "bag", name: "Bag", unitPrice, stock: UNITS }] });
  await operator(api.url).create(sale);
  return sale.id;
}

/** Buys with a repeat for a link that was just cut; answers the order ids that shoppers were told. */
async function buy(saleId: string, names: string[], payment: Payment): Promise<string[]> {
  const told = await inParallel(
    6,
    names.map((name) => async () => {
      const s = shopper(api.url, name);
      return until(`${name} to be told confirmed`, async () => {
        const { id } = (await s.reserve(saleId, "k")).body;
        return id && (await s.confirm(id, payment, { waitS: 5 })).body.orderId;
      });
    }),
  );
  return told as string[];
}
const people = (what: string, n: number) => Array.from({ length: n }, (_, i) => `${what}${i}`);
const resting = (saleId: string) =>
  until("the sale to rest", async () => {
    const a = await operator(api.url).audit(saleId);
    return a.ok && a.open.journalLag === 0 && a.open.paying === 0 && a;
  });
const ctx = () => api.service.ctx;
const theSale = async (saleId: string) => {
  const sale = await ctx().sales.get(saleId);
  if (!sale) throw new Error("no sale");
  return sale;
};
const recovered = async (saleId: string, o: Parameters<typeof recover>[2] | object = {}) =>
  recover(ctx(), [await theSale(saleId)], { all: false, ...o });

/** Nothing is sold, and everyone who asks is told: shoppers without internals, operators with the reason. */
async function expectStopped(saleId: string, sku = "bag"): Promise<void> {
  const ready = await until("the sale to be stopped", async () => {
    const r = await call(`${api.url}/readyz`);
    return r.status === 503 && JSON.stringify(r.body).includes("stopped") && r;
  });
  expect(JSON.stringify(ready.body)).toContain("was Postgres restored from an older copy?");
  const refused = await shopper(api.url, "late").reserve(saleId, "k", [{ sku, quantity: 1 }]);
  expect([refused.status, refused.body.code]).toEqual([503, "UNAVAILABLE"]);
  expect(JSON.stringify(refused.body)).toContain("stands still");
  expect(await operator(api.url).audit(saleId)).toMatchObject({
    ok: false,
    stoppedWhy: expect.stringContaining("fukubukuro recover"),
  });
  await expect(rebuildSale(ctx(), saleId)).rejects.toThrow(/stopped/);
  await expect(rebuildSale(ctx(), saleId, { force: true })).rejects.toThrow(/stopped/);
}

/** The rest is sold, and not one unit more; every capture has its order. */
async function expectSoldOnce(saleId: string, told: string[]): Promise<void> {
  const left = UNITS - told.length;
  told.push(...(await buy(saleId, people("after", left), CARD)));
  const refused = await until("an answer", async () => {
    const r = await shopper(api.url, "one-too-many").reserve(saleId, "k");
    return r.status !== 503 && r;
  });
  expect(refused.body.code).toBe("SOLD_OUT");
  const a = await resting(saleId);
  expect(a).toMatchObject({
    stoppedWhy: null,
    items: [{ granted: UNITS, free: 0, held: 0, claimed: UNITS, sold: UNITS }],
  });
  expect(a.charges).toMatchObject({ withoutOrder: 0, liabilities: 0, twice: 0 });
  const rows = await ctx().db.select({ id: orders.id }).from(orders).where(eq(orders.saleId, saleId));
  expect(new Set(rows.map((r) => r.id))).toEqual(new Set(told));
}

/** 25 sold, a copy, 20 cards and 10 cash more. */
async function soldBeyondTheCopy(saleId: string): Promise<string[]> {
  const told = await buy(saleId, people("early", 15), CARD);
  told.push(...(await buy(saleId, people("early-cash", 10), CASH)));
  await resting(saleId);
  await world.copy();
  told.push(...(await buy(saleId, people("card", 20), CARD)), ...(await buy(saleId, people("cash", 10), CASH)));
  await resting(saleId);
  return told;
}

describe("Postgres restored from an older copy", () => {
  it("under a running service: selling stops, and recover makes every charge and every confirmed cash hold an order again", async () => {
    const saleId = await makeSale();
    const told = await soldBeyondTheCopy(saleId);
    const keeps = shopper(api.url, "keeps");
    const held = (await keeps.reserve(saleId, "k")).body.id;
    await world.restore();
    await expectStopped(saleId);

    const asked = await recovered(saleId);
    expect(asked).toMatchObject({ open: 30, resumed: false });
    const ofKind = (kind: string) => asked.findings.filter((f) => f.kind === kind);
    expect([ofKind("charge").length, ofKind("cash").length]).toEqual([20, 10]);
    expect(ofKind("charge").every((f) => f.lines === "bag:1" && f.customerId?.startsWith("card"))).toBe(true);
    expect((await operator(api.url).audit(saleId)).charges).toMatchObject({ withoutOrder: 20, liabilities: 20 });

    expect(await recovered(saleId, { apply: true })).toMatchObject({ open: 0, resumed: true });
    await until("the held bag", async () => (await keeps.read(held)).body.status === "held");
    const released = await keeps.release(held);
    expect([released.status, released.body.status]).toEqual([200, "released"]);
    await expectSoldOnce(saleId, told);
    expect((await call(`${api.url}/readyz`)).status).toBe(200);
  });

  it("and Redis restarted with its data: nothing is rebuilt over it", async () => {
    const saleId = await makeSale();
    const told = await soldBeyondTheCopy(saleId);
    await world.redis.stop();
    await world.restore();
    const again = await startRedis(`${world.folder}/redis`, undefined, {
      port: world.redis.port,
      password: world.redis.password,
    });
    try {
      await expectStopped(saleId);
      expect(await recovered(saleId, { apply: true })).toMatchObject({ open: 0, resumed: true });
      await expectSoldOnce(saleId, told);
      await api.close();
    } finally {
      await again.stop();
    }
  });

  it("while nobody ran, and rebuilt by force: rebuild refuses, and a service that is started sells nothing", async () => {
    const saleId = await makeSale();
    const told = await soldBeyondTheCopy(saleId);
    await api.close();
    await world.restore();
    api = await world.serve({ ROLE: "api" });
    await expect(rebuildSale(ctx(), saleId, { force: true })).rejects.toThrow(/older copy/);
    await api.close();
    api = await world.serve();
    await expectStopped(saleId);
    expect(await recovered(saleId, { apply: true })).toMatchObject({ open: 0, resumed: true });
    await expectSoldOnce(saleId, told);
  });

  it("and Redis emptied while nobody ran: the gateway's list tells, and the units of its charges are not sold again", async () => {
    const saleId = await makeSale();
    const told = await buy(saleId, people("early", 5), CARD);
    await resting(saleId);
    await world.copy();
    told.push(...(await buy(saleId, people("card", 20), CARD)));
    await resting(saleId);
    await ctx().redis.client.flushall();
    await api.close();
    await world.restore();
    api = await world.serve();
    await expectStopped(saleId);
    const asked = await recovered(saleId, { apply: true });
    expect(asked).toMatchObject({ open: 0, resumed: true });
    expect(asked.findings.map((f) => [f.kind, f.lines, f.outcome])).toEqual(
      Array(20).fill(["charge", "bag:1", "order"]),
    );
    await expectSoldOnce(saleId, told);
  });

  it("of less than a second ago (a standby took over): the position of the journal tells, and nothing that is in line is ended meanwhile", async () => {
    const saleId = await makeSale();
    const told = await buy(saleId, people("early", 5), CARD);
    await resting(saleId);
    await world.copy();
    told.push(...(await buy(saleId, people("card", 10), CARD)));
    await resting(saleId);
    // As if no beat lay between, and a payment that was in line then and has been captured since: in line too long, by
    // this copy.
    const inLine =
      "update payments set state = 'queued', claimed = false, queued_at = now() - interval '1 day', captured_at = null where ctid =";
    await world.restore(
      `update beats set beat = 1000000; ${inLine} (select ctid from payments limit 1);
       delete from outbox where order_id in (select 'ord_' || reference from payments where state = 'queued');
       delete from order_lines where order_id in (select 'ord_' || reference from payments where state = 'queued');
       delete from orders where reference in (select reference from payments where state = 'queued');
       update items set claimed = claimed - 1`,
    );
    await expectStopped(saleId);
    const asked = await recovered(saleId);
    expect(asked.findings.map((f) => f.kind).sort()).toEqual([...Array(10).fill("charge"), "queued"]);
    expect(await recovered(saleId, { apply: true })).toMatchObject({ open: 0, resumed: true });
    await expectSoldOnce(saleId, told);
  });

  it("without the capture of a hold that is confirmed in the journal: nothing of it is written", async () => {
    const line = {
      key: "k".repeat(22),
      letter: "c",
      deadlineMs: 0,
      reference: "C".repeat(26),
      lines: "bag:1",
      customerId: "c",
    };
    const entry = { id: "1-1", epoch: 1, seq: 1, atMs: 1, transitions: [line] } as Parameters<
      typeof recordConfirmed
    >[1][number];
    await expect(ctx().db.transaction((tx) => recordConfirmed(tx, [entry]))).rejects.toThrow(PostgresOlder);
  });

  it("whose charges tell nothing of what was bought: they stay open until a person refunds them or calls them foreign", async () => {
    const saleId = saleBodyOf().id;
    const bags = [1, 2].map((i) => ({ sku: `bag${i}`, name: "Bag", unitPrice: 1_000, stock: 5 }));
    await operator(api.url).create({ id: saleId, items: bags });
    await world.copy();
    for (const name of ["one", "two"]) {
      const s = shopper(api.url, name);
      const { id } = await until("a hold", async () => {
        const r = await s.reserve(saleId, "k", [{ sku: "bag1", quantity: 1 }]);
        return r.body.id && r.body;
      });
      await until("confirmed", async () => (await s.confirm(id)).body.orderId);
    }
    await resting(saleId);
    await ctx().redis.client.flushall();
    await api.close();
    await world.restore();
    api = await world.serve();
    await expectStopped(saleId, "bag1");
    const asked = await recovered(saleId, { apply: true });
    expect(asked).toMatchObject({ open: 2, resumed: false });
    await expectStopped(saleId, "bag1");
    const foreign = asked.findings[0]?.reference as string;
    expect(await recovered(saleId, { apply: true, refund: true, foreign: [foreign] })).toMatchObject({
      open: 0,
      resumed: true,
    });
    const a = await until("the refund", async () => {
      const x = await operator(api.url).audit(saleId);
      return x.ok && x.charges.refunded === 1 && x;
    });
    expect(a.items.map((i) => i.free)).toEqual([5, 5]);
  });
});

describe("no false alarm", () => {
  it("when Redis is emptied, rolled back or rebuilt, and when connections are cut or a process is new", async () => {
    const second = await world.serve();
    const saleId = await makeSale();
    const told = await buy(saleId, people("a", 5), CARD);
    await resting(saleId);
    await ctx().redis.client.flushall();
    told.push(...(await buy(saleId, people("b", 5), CASH)));
    await ctx().redis.client.del("fb:{marks}:postgres");
    await rebuildSale(ctx(), saleId, { force: true });
    await world.copy(); // cuts every connection, and restores nothing
    told.push(...(await buy(saleId, people("c", 5), CARD)));
    await second.close();
    api = await world.serve();
    told.push(...(await buy(saleId, people("d", 5), CASH)));
    await resting(saleId);
    const [row] = await ctx().db.select().from(epochs).where(eq(epochs.saleId, saleId));
    expect(row?.stoppedWhy).toBeNull();
    expect(told.length).toBe(20);
  });

  it("when the beat goes on while a new connection is asked for it", async () => {
    const saleId = await makeSale();
    const sql = postgres(world.databaseUrl, { max: 1 });
    try {
      await until("a beat", async () => (await sql`select beat from beats`).length > 0);
      const [row] = await sql<{ beat: string }[]>`select beat from beats`;
      const seen = { beat: Number(row?.beat) };
      const answered = async (...asked: Parameters<typeof sql>) => {
        const rows = await sql(...asked);
        seen.beat++; // by another connection, before this answer is looked at
        return rows;
      };
      await connectionCheck(seen)(answered as unknown as Sql);
    } finally {
      await sql.end();
    }
    const [epoch] = await ctx().db.select().from(epochs).where(eq(epochs.saleId, saleId));
    expect(epoch?.stoppedWhy).toBeNull();
  });
});
