/** What must leave nothing behind: the heap of a service in a process of its own, after a collection. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CHANGES_CHANNEL } from "../src/keys.ts";
import { startProcess } from "./crash.ts";
import { inspect, keptLine, WITH_INSPECTOR } from "./heap.ts";
import { askMany, openAndLeave, openStream } from "./http.ts";
import { ADMIN_TOKEN, CONTACT, inParallel, makeWorld, operator, shopper, type Running, type World } from "./support.ts";

let world: World;
let helper: Running;
beforeAll(async () => {
  world = await makeWorld();
  helper = await world.start();
});
afterAll(() => world.close());

/** MB on the heap that `f` leaves behind, after it ran once before to fill what may be filled. */
async function leaves(f: (url: string, round: number) => Promise<unknown>, env: Record<string, string> = {}) {
  const service = await startProcess(world, { ...WITH_INSPECTOR, ...env });
  try {
    const inspector = await inspect(service.output());
    await f(service.url, 0);
    const before = await inspector.kept();
    await f(service.url, 1);
    const after = await inspector.kept();
    inspector.close();
    console.log(`${keptLine("before:", before)}; ${keptLine("after:", after)}`);
    return after.heap + after.external - before.heap - before.external;
  } finally {
    service.kill();
    await service.ended;
  }
}

describe("nothing is kept", () => {
  it("of 20,000 look-ups of sales that do not exist", async () => {
    const kept = await leaves(async (url, round) => {
      const n = round === 0 ? 12_000 : 20_000;
      const answers = await askMany(url, n, (i) => ({ path: `/v1/sales/made-up-${round}-${i}` }));
      expect(answers).toEqual({ 404: n });
    });
    expect(kept).toBeLessThan(2);
  });

  it("of 20,000 confirms that would have waited", async () => {
    const saleId = (await operator(helper.url).create()).body.id;
    const hana = shopper(helper.url, "waits");
    const { id } = (await hana.reserve(saleId, "k")).body;
    expect((await hana.confirm(id, { gateway: "cod" })).body.status).toBe("confirmed");
    const headers = { authorization: hana.authorization, "content-type": "application/json", prefer: "wait=5" };
    const body = JSON.stringify({ payment: { gateway: "cod" }, contact: CONTACT });
    const kept = await leaves(async (url, round) => {
      const n = round === 0 ? 2_000 : 20_000;
      const path = `/v1/reservations/${id}/confirm`;
      expect(await askMany(url, n, () => ({ method: "POST", path, headers, body }))).toEqual({ 200: n });
    });
    expect(kept).toBeLessThan(2);
  });

  it("of 4,000 event streams that were opened and left, a shopper's and an operator's", async () => {
    const saleId = (await operator(helper.url).create()).body.id;
    const hana = shopper(helper.url, "watches");
    const { id } = (await hana.reserve(saleId, "k")).body;
    const kept = await leaves(async (url, round) => {
      const n = round === 0 ? 200 : 2_000;
      const streams = [
        { path: `/v1/reservations/${id}/events`, headers: { authorization: hana.authorization } },
        { path: "/v1/admin/events", headers: { authorization: `Bearer ${ADMIN_TOKEN}` } },
      ];
      const jobs = Array.from({ length: n }, () => streams.map((s) => () => openAndLeave(url, s))).flat();
      expect(new Set(await inParallel(20, jobs))).toEqual(new Set([200]));
    });
    expect(kept).toBeLessThan(2);
  });

  it("of 20,000 hints to a stream that stays open", async () => {
    const saleId = (await operator(helper.url).create()).body.id;
    const hana = shopper(helper.url, "stays");
    const { id } = (await hana.reserve(saleId, "k")).body;
    const key = helper.service.ctx.ids.parse(id, "stays")?.key as string;
    const headers = { authorization: hana.authorization };
    const kept = await leaves(async (url, round) => {
      const stream = await openStream(url, { path: `/v1/reservations/${id}/events`, headers });
      // Each hint that finds the stream waiting makes it look again: by the answers of Redis there are many.
      const looks = async () => Number(/cmdstat_evalsha.*?calls=(\d+)/.exec(await helper.service.ctx.redis.client.info("commandstats"))?.[1]);
      const n = round === 0 ? 500 : 20_000;
      const until = (await looks()) + n;
      while ((await looks()) < until)
        await Promise.all(Array.from({ length: 200 }, () => helper.service.ctx.redis.client.publish(CHANGES_CHANNEL, key)));
      stream.destroy();
    });
    expect(kept).toBeLessThan(2);
  });
});
