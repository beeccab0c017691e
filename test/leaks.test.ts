/** What must leave nothing behind: the heap of a service in a process of its own, after a collection. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startProcess } from "./crash.ts";
import { inspect, type Kept, keptLine, WITH_INSPECTOR } from "./heap.ts";
import { askMany, openAndLeave } from "./http.ts";
import { ADMIN_TOKEN, CONTACT, inParallel, makeWorld, operator, type Running, shopper, type World } from "./support.ts";

/** What a reading of an idle process may differ by; each leak that was found kept more. */
const KEPT_MB_MAX = 0.6;

let world: World;
let helper: Running;
beforeAll(async () => {
  world = await makeWorld();
  helper = await world.start();
});
afterAll(() => world.close());

/** MB that `f` leaves behind: the least of two repetitions, after one to fill what may be filled; what is only settling down grows once. */
async function leaves(f: (url: string, round: number) => Promise<unknown>): Promise<number> {
  const service = await startProcess(world, { ...WITH_INSPECTOR, ROLE: "api" });
  try {
    const inspector = await inspect(service.output());
    const kept: Kept[] = [];
    for (let round = 0; round < 3; round++) {
      await f(service.url, round);
      kept.push(await inspector.kept());
    }
    inspector.close();
    console.log(kept.map((k, round) => keptLine(`round ${round}:`, k)).join("; "));
    const [a, b, c] = kept.map((k) => k.heap + k.external) as [number, number, number];
    return Math.min(b - a, c - b);
  } finally {
    service.kill();
    await service.ended;
  }
}

describe("nothing is kept", () => {
  it("of 11,000 look-ups of sales that do not exist", async () => {
    const kept = await leaves(async (url, round) => {
      const n = 11_000; // the negative cache holds ten thousand
      const answers = await askMany(url, n, (i) => ({ path: `/v1/sales/made-up-${round}-${i}` }));
      expect(answers).toEqual({ 404: n });
    });
    expect(kept).toBeLessThan(KEPT_MB_MAX);
  });

  it("of 10,000 confirms that would have waited", async () => {
    const saleId = (await operator(helper.url).create()).body.id;
    const hana = shopper(helper.url, "waits");
    const { id } = (await hana.reserve(saleId, "k")).body;
    expect((await hana.confirm(id, { gateway: "cod" })).body.status).toBe("confirmed");
    const headers = { authorization: hana.authorization, "content-type": "application/json", prefer: "wait=5" };
    const body = JSON.stringify({ payment: { gateway: "cod" }, contact: CONTACT });
    const kept = await leaves(async (url) => {
      const n = 10_000;
      const path = `/v1/reservations/${id}/confirm`;
      expect(await askMany(url, n, () => ({ method: "POST", path, headers, body }))).toEqual({ 200: n });
    });
    expect(kept).toBeLessThan(KEPT_MB_MAX);
  });

  it("of 4,000 event streams that were opened and left, a shopper's and an operator's", async () => {
    const saleId = (await operator(helper.url).create()).body.id;
    const hana = shopper(helper.url, "watches");
    const { id } = (await hana.reserve(saleId, "k")).body;
    const kept = await leaves(async (url) => {
      const n = 2_000;
      const streams = [
        { path: `/v1/reservations/${id}/events`, headers: { authorization: hana.authorization } },
        { path: "/v1/admin/events", headers: { authorization: `Bearer ${ADMIN_TOKEN}` } },
      ];
      const jobs = Array.from({ length: n }, () => streams.map((s) => () => openAndLeave(url, s))).flat();
      expect(new Set(await inParallel(20, jobs))).toEqual(new Set([200]));
    });
    expect(kept).toBeLessThan(KEPT_MB_MAX);
  });
});
