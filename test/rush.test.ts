/** The opening second: refusals from memory, load shed by priority, and never at the cost of those who hold a bag. */
import { request } from "node:http";
import { describe, expect, it } from "vitest";
import { startProxy } from "./proxy.ts";
import { bags, call, inParallel, operator, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();

/** Calls of scripts that Redis has had so far. */
async function scriptCalls(): Promise<number> {
  const stats = await (api.service.ctx.redis.client as { info(section: string): Promise<string> }).info("commandstats");
  return Number(/cmdstat_evalsha:calls=(\d+)/.exec(stats)?.[1] ?? 0);
}
const crowd = (saleId: string, n: number, of: string) =>
  inParallel(
    50,
    Array.from({ length: n }, (_, i) => () => shopper(api.url, `${of}${i}`).reserve(saleId, "k")),
  );
const codes = (replies: Array<{ body: { code?: string } }>) => [...new Set(replies.map((r) => r.body.code))];

describe("refusing from memory", () => {
  it("a storm on a sale that is out costs Redis next to nothing, and the one who holds the bag is answered with it all the while", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const holder = shopper(api.url, "holder");
    const { id } = (await holder.reserve(saleId, "k")).body;
    await crowd(saleId, 200, "warm");
    const before = await scriptCalls();
    const [refused, replays] = await Promise.all([
      crowd(saleId, 1000, "late"),
      inParallel(
        1,
        Array.from({ length: 20 }, () => () => holder.reserve(saleId, "k")),
      ),
    ]);
    expect(codes(refused)).toEqual(["ALL_HELD"]);
    for (const r of refused) expect(Number(r.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(refused[0]?.body).toMatchObject({ lines: [{ sku: "bag", requested: 1, free: 0 }] });
    for (const r of replays) expect([r.status, r.body.id]).toEqual([200, id]);
    // The worker's own loops call scripts too; a request each would be a thousand.
    expect((await scriptCalls()) - before).toBeLessThan(400);
  });

  it("what comes back in the middle of a storm is granted: a top-up, and a bag given back", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const holder = shopper(api.url, "gives");
    const { id } = (await holder.reserve(saleId, "k")).body;
    await crowd(saleId, 100, "a");
    await op.topUp(saleId, 1, "more");
    await until("the new bag to be granted", async () => (await crowd(saleId, 20, "b")).some((r) => r.status === 201));
    await holder.release(id);
    await until("the bag given back to be granted", async () =>
      (await crowd(saleId, 20, "c")).some((r) => r.status === 201),
    );
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 0, held: 2 }] });
  });

  it("before the opening nobody is granted anything, Redis is not asked, the body is not read; at the opening exactly the stock is", async () => {
    const opensAt = new Date(Date.now() + 1500);
    const saleId = (await op.create({ items: bags(5), opensAt: opensAt.toISOString() })).body.id;
    await shopper(api.url, "clock").reserve(saleId, "k"); // the first one asks for Redis' clock
    const before = await scriptCalls();
    const early = await crowd(saleId, 300, "early");
    expect(codes(early)).toEqual(["SALE_NOT_OPEN"]);
    expect(early[0]?.body).toMatchObject({ opensAt: opensAt.toISOString() });
    expect((await scriptCalls()) - before).toBeLessThan(200);
    const { authorization } = shopper(api.url, "unread");
    const unread = await call(`${api.url}/v1/sales/${saleId}/reservations`, {
      method: "POST",
      headers: { authorization, "content-type": "application/json", "idempotency-key": "k" },
      body: "{",
    });
    expect(unread.body.code).toBe("SALE_NOT_OPEN");
    const granted: string[] = [];
    await until("the opening", async () => {
      granted.push(...(await crowd(saleId, 50, "press")).filter((r) => r.status === 201).map((r) => r.body.id));
      return granted.length > 0;
    });
    expect(Date.now()).toBeGreaterThanOrEqual(opensAt.getTime());
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 0, held: 5 }] });
  });

  it("paused or closed in a storm: others are refused, a holder's replay is not; resuming is seen at once", async () => {
    const saleId = (await op.create({ items: bags(100) })).body.id;
    const holder = shopper(api.url, "paused");
    const { id } = (await holder.reserve(saleId, "k")).body;
    await op.patch(saleId, { reserving: "off" });
    for (let i = 0; i < 3; i++) expect(codes(await crowd(saleId, 60, `p${i}`))).toEqual(["SALE_PAUSED"]);
    expect((await holder.reserve(saleId, "k")).body.id).toBe(id);
    await op.patch(saleId, { reserving: "on" });
    expect((await shopper(api.url, "resumed").reserve(saleId, "k")).status).toBe(201);
    await op.patch(saleId, { closesAt: new Date(Date.now() - 1000).toISOString() });
    for (let i = 0; i < 3; i++) expect(codes(await crowd(saleId, 60, `c${i}`))).toEqual(["SALE_CLOSED"]);
    expect((await holder.reserve(saleId, "k")).body.id).toBe(id);
  });
});

describe("shedding", () => {
  it("when Redis hangs, reserves in flight are bounded and the rest told to come back; paying, operators and health are still let in", async () => {
    const link = await startProxy(world.redis.port);
    const small = await world.start({
      REDIS_URL: `redis://:${world.redis.password}@127.0.0.1:${link.port}`,
      IN_FLIGHT_MAX: "4",
      ROLE: "api",
    });
    try {
      const saleId = (await operator(small.url).create({ items: bags(100) })).body.id;
      const s = shopper(small.url, "s");
      const { id } = (await s.reserve(saleId, "k")).body;
      link.blackHole(true);
      const replies = await Promise.all(
        Array.from({ length: 30 }, (_, i) => shopper(small.url, `h${i}`).reserve(saleId, "k")),
      );
      const shed = replies.filter((r) => r.body.code === "OVERLOADED");
      expect(shed).toHaveLength(26);
      for (const r of shed) expect(Number(r.headers.get("retry-after"))).toBeGreaterThan(0);
      expect(codes(replies.filter((r) => r.body.code !== "OVERLOADED"))).toEqual(["UNAVAILABLE"]);
      const paying = s.confirm(id, { gateway: "cod" }, { waitS: 0 });
      expect((await call(`${small.url}/healthz`)).status).toBe(200);
      expect((await operator(small.url).get("/orders")).status).toBe(200);
      expect((await paying).body.code).toBe("UNAVAILABLE");
      link.blackHole(false);
      link.cut();
      await until("things to go on", async () => (await s.reserve(saleId, "again")).status === 201);
    } finally {
      await small.close();
      await link.close();
    }
  });

  it("when Postgres swallows everything, a confirm still ends, with 503: unknown, and the repeat is answered once it is back", async () => {
    const link = await startProxy(Number(new URL(world.databaseUrl).port));
    const through = new URL(world.databaseUrl);
    through.port = String(link.port);
    const far = await world.start({ DATABASE_URL: through.href });
    try {
      const saleId = (await operator(far.url).create({ items: bags(1), holdMs: 120_000 })).body.id;
      const s = shopper(far.url, "patient");
      const { id } = (await s.reserve(saleId, "k")).body;
      link.blackHole(true);
      expect((await s.confirm(id, { gateway: "cod" }, { waitS: 0 })).body.code).toBe("UNAVAILABLE");
      link.blackHole(false);
      link.cut();
      await until(
        "the repeat to be answered",
        async () => (await s.confirm(id, { gateway: "cod" }, { waitS: 5 })).status === 200,
        40_000,
      );
    } finally {
      await far.close();
      await link.close();
    }
  }, 120_000);

  it("one customer's flood is refused without a call of Redis each, and harms no other customer", async () => {
    const limited = await world.start({ CUSTOMER_RATE_PER_S: "5", ROLE: "api" });
    const saleId = (await operator(limited.url).create({ items: bags(100), maxUnitsPerCustomer: 99 })).body.id;
    const bot = shopper(limited.url, "bot");
    const flood = await inParallel(
      20,
      Array.from({ length: 100 }, (_, i) => () => bot.reserve(saleId, `k${i}`)),
    );
    expect(flood.filter((r) => r.status === 429).length).toBeGreaterThan(80);
    expect((await shopper(limited.url, "person").reserve(saleId, "k")).status).toBe(201);
    await limited.close();
  });
});

describe("the fast path", () => {
  it("answers a hot route as Hono does", async () => {
    const saleId = (await op.create({ items: bags(3) })).body.id;
    const direct = await call(`${api.url}/v1/sales/${saleId}`);
    // An escaped letter in the path is left to Hono, which decodes it.
    const escaped = await call(`${api.url}/v1/sales/%73${saleId.slice(1)}`);
    const { serverTime: _a, ...a } = direct.body;
    const { serverTime: _b, ...b } = escaped.body;
    expect(b).toEqual(a);
    const names = (h: Headers) =>
      [...h.keys()].filter((n) => n !== "transfer-encoding" && n !== "content-length").sort();
    expect(names(escaped.headers)).toEqual(names(direct.headers));
    const s = shopper(api.url, "both-paths");
    const { id } = (await s.reserve(saleId, "k")).body;
    const again = await s.reserve(`%73${saleId.slice(1)}`, "k");
    expect([again.status, again.body.id, again.headers.get("idempotent-replay")]).toEqual([200, id, "true"]);
    const head = await call(`${api.url}/v1/sales/${saleId}`, { method: "HEAD" });
    expect([head.status, head.headers.get("etag")]).toEqual([200, direct.headers.get("etag")]);
  });

  it("a request that is refused before its body was read leaves the connection usable", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const { authorization } = shopper(api.url, "keep");
    const { Agent } = await import("node:http");
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const send = (headers: Record<string, string>) =>
      new Promise<number>((resolve, reject) => {
        const body = JSON.stringify({ lines: [{ sku: "bag", quantity: 1 }] });
        const r = request(
          `${api.url}/v1/sales/${saleId}/reservations`,
          {
            agent,
            method: "POST",
            headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body), ...headers },
          },
          (answer) => {
            answer.resume();
            answer.on("end", () => resolve(answer.statusCode ?? 0));
          },
        );
        r.on("error", reject);
        r.end(body);
      });
    expect(await send({ "idempotency-key": "k" })).toBe(401);
    expect(await send({ authorization })).toBe(422);
    expect(await send({ authorization, "idempotency-key": "k" })).toBe(201);
    agent.destroy();
  });
});
