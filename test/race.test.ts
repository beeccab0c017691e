/** Everyone at once: what must hold when shoppers, clocks, operators and broken links meet in the same instant. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Link, startProxy } from "./proxy.ts";
import { bags, inParallel, makeWorld, operator, pause, type Running, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();

const times = <T>(n: number, f: (i: number) => Promise<T>) =>
  inParallel(
    n,
    Array.from({ length: n }, (_, i) => () => f(i)),
  );
const balanced = (saleId: string) =>
  until("the books to balance and rest", async () => {
    const a = await op.audit(saleId);
    return a.ok && a.open.paying === 0 && a.open.journalLag === 0 && a;
  });

describe("reserve", () => {
  it("of 200 shoppers for 37 units over two processes grants exactly 37", async () => {
    const second = await world.start();
    const saleId = (await op.create({ items: bags(37) })).body.id;
    const replies = await times(200, (i) => shopper(i % 2 ? api.url : second.url, `n${i}`).reserve(saleId, "k"));
    expect(replies.filter((r) => r.status === 201)).toHaveLength(37);
    expect(new Set(replies.filter((r) => r.status === 201).map((r) => r.body.id)).size).toBe(37);
    expect(replies.filter((r) => r.status !== 201).every((r) => r.body.code === "ALL_HELD")).toBe(true);
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 0, held: 37 }] });
    await second.close();
  });

  it("with the same Idempotency-Key fifty times in parallel makes one hold", async () => {
    const saleId = (await op.create()).body.id;
    const replies = await times(50, () => shopper(api.url, "fifty").reserve(saleId, "same"));
    expect(new Set(replies.map((r) => r.body.id)).size).toBe(1);
    expect(replies.filter((r) => r.status === 201)).toHaveLength(1);
    expect(replies.filter((r) => r.headers.get("idempotent-replay") === "true")).toHaveLength(49);
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 9, held: 1 });
  });

  it("never passes the limit of a customer who presses with many keys at once", async () => {
    const saleId = (await op.create({ maxUnitsPerCustomer: 3 })).body.id;
    const replies = await times(30, (i) => shopper(api.url, "greedy").reserve(saleId, `k${i}`));
    expect(replies.filter((r) => r.status === 201)).toHaveLength(3);
    expect(replies.filter((r) => r.body.code === "LIMIT_REACHED")).toHaveLength(27);
  });

  it("takes all lines or none when two items race crosswise", async () => {
    const items = ["a", "b"].map((sku) => ({ sku, name: sku, unitPrice: 1, stock: 5 }));
    const saleId = (await op.create({ items, maxUnitsPerCustomer: 4 })).body.id;
    const lines = (i: number) => (i % 2 ? ["a", "b"] : ["b", "a"]).map((sku) => ({ sku, quantity: 1 }));
    const replies = await times(40, (i) => shopper(api.url, `x${i}`).reserve(saleId, "k", lines(i)));
    expect(replies.filter((r) => r.status === 201)).toHaveLength(5);
    expect((await op.sale(saleId)).items).toMatchObject([{ free: 0 }, { free: 0 }]);
  });

  it("during top-ups under load sells every unit once", async () => {
    const saleId = (await op.create({ items: bags(5) })).body.id;
    const [replies] = await Promise.all([
      times(100, async (i) => {
        const s = shopper(api.url, `t${i}`);
        // Presses again until the last top-up is in.
        return until("a bag or the end", async () => {
          const r = await s.reserve(saleId, "k");
          return (r.status === 201 || r.status === 200 || (await op.sale(saleId)).items[0]?.granted === 25) && r;
        });
      }),
      times(4, (i) => op.topUp(saleId, 5, `t${i}`)),
    ]);
    const granted = replies.filter((r) => r.status === 201 || r.status === 200).length;
    const audit = await op.audit(saleId);
    expect(audit).toMatchObject({ ok: true, items: [{ granted: 25, difference: 0 }] });
    expect(audit.items[0]?.held).toBe(granted);
  });

  it("the same top-up key fifty times in parallel is applied once", async () => {
    const saleId = (await op.create()).body.id;
    const replies = await times(50, () => op.topUp(saleId, 7, "once"));
    expect(replies.every((r) => r.status === 200 && r.body.granted === 17)).toBe(true);
    expect(replies.filter((r) => !r.body.replayed)).toHaveLength(1);
    expect((await op.sale(saleId)).items[0]).toMatchObject({ granted: 17, free: 17 });
  });
});

describe("confirm", () => {
  it("fifty times in parallel, over two processes, makes one charge and tells everyone the same order", async () => {
    const second = await world.start();
    const saleId = (await op.create()).body.id;
    const s = shopper(api.url, "confirms");
    const { id } = (await s.reserve(saleId, "k")).body;
    const replies = await times(50, (i) => shopper(i % 2 ? api.url : second.url, "confirms").confirm(id));
    expect(replies.map((r) => r.status)).toEqual(Array(50).fill(200));
    expect(new Set(replies.map((r) => r.body.orderId)).size).toBe(1);
    expect(await balanced(saleId)).toMatchObject({ charges: { captured: 1, twice: 0 }, orders: { recorded: 1 } });
    await second.close();
  });

  it("against release against expiry: exactly one wins, for every one of 40 holds", async () => {
    const saleId = (await op.create({ holdMs: 1_000, items: bags(40) })).body.id;
    const outcomes = await times(40, async (i) => {
      const s = shopper(api.url, `w${i}`);
      const { id, expiresAt } = (await s.reserve(saleId, "k")).body;
      // Half of them at the very deadline, so that the sweeper takes part.
      if (i % 2) await until("the deadline", () => Date.now() >= Date.parse(expiresAt as string) - 15);
      const [confirmed, released] = await Promise.all([s.confirm(id, { gateway: "cod" }), s.release(id)]);
      const view = await until("a final state", async () => {
        const v = (await s.read(id)).body;
        return ["confirmed", "released", "expired"].includes(v.status) && v;
      });
      return { confirmed: confirmed.status === 200, released: released.status === 200, status: view.status };
    });
    for (const o of outcomes) {
      expect(o.confirmed).toBe(o.status === "confirmed");
      expect(o.released).toBe(o.status === "released");
    }
    const audit = await balanced(saleId);
    expect(audit.items[0]?.sold).toBe(outcomes.filter((o) => o.status === "confirmed").length);
  });
});

describe("a link to Redis that breaks", () => {
  let proxy: Link;
  let behind: Running;
  beforeAll(async () => {
    proxy = await startProxy(world.redis.port);
    const url = new URL(world.redis.url);
    url.port = String(proxy.port);
    behind = await world.start({ REDIS_URL: url.href, ROLE: "api" });
  });
  afterAll(async () => {
    await behind.close();
    await proxy.close();
  });
  const again = (s: ReturnType<typeof shopper>, saleId: string, key: string) =>
    until("an answer", async () => {
      const r = await s.reserve(saleId, key);
      return r.status !== 503 && r;
    });

  it("and loses the reply: the shopper of the last bag asks again with the same key and has the bag, not SOLD_OUT", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const s = shopper(behind.url, "lost-reply");
    expect((await fetch(`${behind.url}/v1/sales/${saleId}`)).status).toBe(200);
    proxy.loseReplies(true);
    const unknown = await s.reserve(saleId, "k");
    expect(unknown).toMatchObject({ status: 503, body: { code: "UNAVAILABLE" } });
    expect(Number(unknown.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(proxy.lost()).toBeGreaterThan(0);
    proxy.loseReplies(false);
    expect((await shopper(api.url, "other").reserve(saleId, "k")).body.code).toBe("ALL_HELD");
    expect(await again(s, saleId, "k")).toMatchObject({ status: 200, body: { status: "held" } });
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 0, held: 1 });
  });

  it("again and again under load never takes a unit twice", async () => {
    const saleId = (await op.create({ items: bags(30) })).body.id;
    let done = false;
    const breaking = (async () => {
      for (let on = true; !done; on = !on) {
        proxy.loseReplies(on);
        await pause(30); // the rhythm of the fault, not a wait for anything
      }
      proxy.loseReplies(false);
    })();
    const replies = await times(60, (i) => again(shopper(behind.url, `l${i}`), saleId, "k"));
    done = true;
    await breaking;
    const granted = replies.filter((r) => r.status === 201 || r.status === 200);
    expect(granted).toHaveLength(30);
    expect(new Set(granted.map((r) => r.body.id)).size).toBe(30);
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 0, held: 30, difference: 0 }] });
  });

  it("into a black hole: every request ends with 503 in time, and nothing happens later by itself", async () => {
    const saleId = (await op.create()).body.id;
    await fetch(`${behind.url}/v1/sales/${saleId}`);
    proxy.blackHole(true);
    const replies = await times(5, (i) => shopper(behind.url, `h${i}`).reserve(saleId, "k"));
    expect(replies.map((r) => r.status)).toEqual(Array(5).fill(503));
    proxy.cut();
    proxy.blackHole(false);
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 10, held: 0 });
    expect((await again(shopper(behind.url, "h0"), saleId, "k")).status).toBe(201);
  });
});

describe("without a sweeper", () => {
  it("a hold that was not paid is reservable again within one second of its deadline", async () => {
    const still = await makeWorld();
    try {
      const service = await still.start({ SWEEP_MS: "0" });
      const o = operator(service.url);
      const saleId = (await o.create({ holdMs: 1_000, items: bags(1) })).body.id;
      const first = await shopper(service.url, "first").reserve(saleId, "k");
      const deadline = Date.parse(first.body.expiresAt as string);
      await until("reservable", async () => (await shopper(service.url, "second").reserve(saleId, "k")).status === 201);
      expect(Date.now()).toBeGreaterThanOrEqual(deadline - 50);
      expect(Date.now() - deadline).toBeLessThan(1_000);
    } finally {
      await still.close();
    }
  });
});
