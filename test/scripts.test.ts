/** Each script on a real Redis: every outcome of its header, and the header against the code. */

import { readFileSync } from "node:fs";
import { beforeEach, describe, expect, it } from "vitest";
import { StaleEpoch } from "../src/domain/errors.ts";
import { parseHold } from "../src/domain/hold.ts";
import { gateKeys, saleKeys } from "../src/stores/keys.ts";
import { scriptNames, scriptText } from "../src/stores/lua.ts";
import type { InstallImage, Stamp } from "../src/stores/scripts.ts";
import { redis, scripts, useScripts } from "./lone-redis.ts";
import { pause, until } from "./support.ts";

useScripts();

const SALE = "s";
const keys = saleKeys(SALE);
const [SALE_KEY, FREE, LIVE, HOLDS, DUE, PAYING, CUSTOMERS, JOURNAL] = keys.transitionKeys as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
  string,
];
let stamp: Stamp;

async function install(change: Partial<InstallImage> = {}, settings: Record<string, number> = {}) {
  const image: InstallImage = {
    epoch: 1,
    seq: 0,
    runId: redis.instance()?.runId ?? "",
    holds: [],
    customers: new Map(),
    moves: [],
    free: new Map([
      ["bag", 3],
      ["box", 1],
    ]),
    settings: {
      opensAt: 0,
      closesAt: 9e12,
      holdMs: 60_000,
      limit: 2,
      reserving: 1,
      shift: 0,
      pausedAt: 0,
      version: 1,
      ...settings,
    },
    ...change,
  };
  return scripts.install(SALE, image);
}
beforeEach(async () => {
  await redis.client.flushall();
  stamp = { saleId: SALE, epoch: 1, seqMin: 0, notAfterMs: 0 };
  expect(await install()).toBe("INSTALLED");
});

const reserve = async (key: string, customerId: string, lines = "bag:1") =>
  (await scripts.reserve(stamp, { sweepMax: 10, journalMax: 1_000_000 }, [{ key, customerId, lines }])).results[0];
const pay = async (key: string, customerId: string, reference: string, referenceBefore = "") =>
  (await scripts.pay(stamp, [{ key, customerId, reference, referenceBefore }])).results[0];
const confirm = async (key: string, reference: string) =>
  (await scripts.confirm(stamp, [{ key, reference }])).results[0];
const decline = async (key: string, reference: string, to: "held" | "released" = "held") =>
  (await scripts.decline(stamp, [{ key, reference, graceMs: 5000, to }])).results[0];
const release = async (key: string, customerId: string) =>
  (await scripts.release(stamp, [{ key, customerId }])).results[0];
/** Lets every live hold's time be over. */
const passDeadlines = async () => {
  for (const [key, packed] of Object.entries(await redis.client.hgetall(HOLDS))) {
    const [state, , ref, lines, customer] = packed.split("|");
    if (state !== "h") continue;
    await redis.client.hset(HOLDS, key, [state, 1, ref, lines, customer].join("|"));
    await redis.client.zadd(DUE, 1, key);
  }
};
const free = async (sku = "bag") => Number(await redis.client.hget(FREE, sku));
const seq = async () => Number(await redis.client.hget(SALE_KEY, "seq"));

describe("reserve", () => {
  it("HELD takes all lines, sets the deadline, raises the sequence and writes the journal in one call", async () => {
    const a = await scripts.reserve(stamp, { sweepMax: 10, journalMax: 1_000_000 }, [
      { key: "A".repeat(22), customerId: "c|1", lines: "bag:1,box:1" },
    ]);
    expect(a.results).toEqual([{ outcome: "HELD", deadlineMs: a.nowMs + 60_000 }]);
    expect(a.seq).toBe(1);
    expect([await free(), await free("box"), await redis.client.hget(LIVE, "bag")]).toEqual([2, 0, "1"]);
    const [entry] = await redis.client.xrange(JOURNAL, "-", "+");
    expect(entry?.[1].slice(0, 6)).toEqual(["v", "1", "e", "1", "s", "1"]);
    expect(entry?.[1].at(-1)).toBe(`${"A".repeat(22)}|h|${a.nowMs + 60_000}||bag:1,box:1|c|1`);
  });
  it("REPLAYED answers the same key with the hold as it is and takes nothing, also twice in one call", async () => {
    const twice = await scripts.reserve(
      stamp,
      { sweepMax: 10, journalMax: 1_000_000 },
      [1, 2].map(() => ({ key: "k", customerId: "c", lines: "bag:1" })),
    );
    expect(twice.results.map((r) => r.outcome)).toEqual(["HELD", "REPLAYED"]);
    await release("k", "c");
    expect(await reserve("k", "c")).toMatchObject({ outcome: "REPLAYED", hold: { state: "released" } });
    expect(await free()).toBe(3);
  });
  it("REPLAYED wins over every refusal: sold out, closed, paused, over limit", async () => {
    await reserve("k", "c", "bag:2");
    await reserve("o", "other", "bag:1");
    await redis.client.hset(SALE_KEY, { closesAt: 1, reserving: 0 });
    expect(await reserve("k", "c", "bag:2")).toMatchObject({ outcome: "REPLAYED", hold: { state: "held" } });
  });
  it("MISMATCH for the same key with other lines", async () => {
    await reserve("k", "c");
    expect(await reserve("k", "c", "bag:2")).toEqual({ outcome: "MISMATCH" });
  });
  it("NOT_OPEN, CLOSED and PAUSED by Redis' clock and the operator's switch", async () => {
    await redis.client.hset(SALE_KEY, { opensAt: 9e12 });
    expect(await reserve("k", "c")).toEqual({ outcome: "NOT_OPEN" });
    await redis.client.hset(SALE_KEY, { opensAt: 0, closesAt: 1 });
    expect(await reserve("k", "c")).toEqual({ outcome: "CLOSED" });
    await redis.client.hset(SALE_KEY, { closesAt: 9e12, reserving: 0 });
    expect(await reserve("k", "c")).toEqual({ outcome: "PAUSED" });
    expect(await redis.client.xlen(JOURNAL)).toBe(0);
  });
  it("BACKLOG while too many entries wait for Postgres: nothing is granted, a replay is answered, and giving back still works", async () => {
    await reserve("a", "c");
    const full = (key: string) =>
      scripts.reserve(stamp, { sweepMax: 10, journalMax: 1 }, [{ key, customerId: "d", lines: "bag:1" }]);
    expect((await full("b")).results).toEqual([{ outcome: "BACKLOG" }]);
    expect(await reserve("a", "c")).toMatchObject({ outcome: "REPLAYED" });
    expect(await release("a", "c")).toMatchObject({ outcome: "RELEASED" });
    await redis.client.del(JOURNAL);
    expect((await full("b")).results).toMatchObject([{ outcome: "HELD" }]);
  });
  it("LIMIT counts live and paid units before stock, and not those whose time is over", async () => {
    await reserve("a", "c", "bag:2");
    expect(await reserve("b", "c")).toEqual({ outcome: "LIMIT", units: 2 });
    await passDeadlines();
    expect(await reserve("b", "c")).toMatchObject({ outcome: "HELD" });
  });
  it("SHORT takes nothing, tells free and live of each line and the next deadline", async () => {
    const held = await reserve("a", "c", "box:1");
    expect(await reserve("b", "d", "bag:1,box:1")).toEqual({
      outcome: "SHORT",
      nextDueMs: held?.outcome === "HELD" && held.deadlineMs,
      lines: [
        { sku: "bag", free: 3, live: 0 },
        { sku: "box", free: 0, live: 1 },
      ],
    });
    expect(await free()).toBe(3);
  });
  it("gives due holds back itself when stock is short, so that no sweeper is needed", async () => {
    await reserve("a", "c", "box:1");
    await passDeadlines();
    expect(await reserve("b", "d", "box:1")).toMatchObject({ outcome: "HELD" });
    expect(parseHold((await redis.client.hget(HOLDS, "a")) as string).state).toBe("expired");
  });
  it("STALE_EPOCH for another epoch, a lower sequence, a fence, or no sale; and nothing is done", async () => {
    await reserve("a", "c");
    for (const change of [{ epoch: 2 }, { epoch: 0 }, { seqMin: 99 }])
      await expect(
        scripts.reserve({ ...stamp, ...change }, { sweepMax: 10, journalMax: 1_000_000 }, [
          { key: "k", customerId: "c", lines: "bag:1" },
        ]),
      ).rejects.toThrow(StaleEpoch);
    await scripts.fence(SALE, 1, "us", 1);
    await expect(reserve("k", "c")).rejects.toThrow(StaleEpoch);
    await redis.client.del(SALE_KEY);
    await expect(reserve("k", "c")).rejects.toThrow(StaleEpoch);
    expect(await free()).toBe(2);
  });
  it("LATE: a call that arrives after its time does nothing", async () => {
    await expect(
      scripts.reserve({ ...stamp, notAfterMs: 1 }, { sweepMax: 10, journalMax: 1_000_000 }, [
        { key: "k", customerId: "c", lines: "bag:1" },
      ]),
    ).rejects.toThrow("too late");
    expect(await redis.client.hlen(HOLDS)).toBe(0);
  });
  it("a broken number is an error before the first write, never a count: missing, nan, negative, hex", async () => {
    for (const wrong of ["nan", "-3", "0x10", "1e3", ""]) {
      await redis.client.hset(FREE, "bag", wrong);
      await expect(reserve("k", "c", "bag:1,box:1")).rejects.toThrow("BROKEN");
    }
    await redis.client.hdel(FREE, "bag");
    await expect(reserve("k", "c", "bag:1,box:1")).rejects.toThrow("BROKEN");
    expect([await redis.client.hlen(HOLDS), await free("box"), await seq()]).toEqual([0, 1, 0]);
  });
});

describe("pay", () => {
  it("PAYING binds one reference and leaves the expiry clock; repeated with it answers PAYING", async () => {
    await reserve("k", "c");
    expect(await pay("k", "c", "R1")).toMatchObject({ outcome: "PAYING", hold: { state: "paying", reference: "R1" } });
    expect(await pay("k", "c", "R1")).toMatchObject({ outcome: "PAYING" });
    expect([await redis.client.zscore(DUE, "k"), await redis.client.zcard(PAYING)]).toEqual([null, 1]);
    await passDeadlines();
    expect((await scripts.expire(stamp, 10)).results).toEqual([0]);
  });
  it("JOINED tells of the payment that is under way", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    expect(await pay("k", "c", "R2")).toMatchObject({ outcome: "JOINED", hold: { reference: "R1" } });
  });
  it("CONFIRMED once it is paid", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    await confirm("k", "R1");
    expect(await pay("k", "c", "R2")).toMatchObject({ outcome: "CONFIRMED", hold: { reference: "R1" } });
  });
  it("DECLINED_BEFORE until the caller names the attempt before it", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    await decline("k", "R1");
    expect(await pay("k", "c", "R2")).toMatchObject({ outcome: "DECLINED_BEFORE", hold: { reference: "R1" } });
    expect(await pay("k", "c", "R2", "R1")).toMatchObject({ outcome: "PAYING", hold: { reference: "R2" } });
  });
  it("RELEASED and EXPIRED are too late, also when the sweeper was not there yet", async () => {
    await reserve("k", "c");
    await release("k", "c");
    expect(await pay("k", "c", "R1")).toMatchObject({ outcome: "RELEASED" });
    await reserve("l", "c");
    await passDeadlines();
    expect(await pay("l", "c", "R1")).toMatchObject({ outcome: "EXPIRED" });
    expect(await free()).toBe(3);
  });
  it("PAUSED while paying is paused", async () => {
    await reserve("k", "c");
    await redis.client.hset(SALE_KEY, "pausedAt", Date.now());
    expect(await pay("k", "c", "R1")).toEqual({ outcome: "PAUSED" });
  });
  it("LOST for a hold that is not there, or another customer's", async () => {
    await reserve("k", "c");
    expect(await pay("nothing", "c", "R1")).toEqual({ outcome: "LOST" });
    expect(await pay("k", "d", "R1")).toEqual({ outcome: "LOST" });
  });
});

describe("confirm", () => {
  it("CONFIRMED once and again; the unit is no longer live and never comes back by time", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    expect(await confirm("k", "R1")).toMatchObject({ outcome: "CONFIRMED", hold: { state: "confirmed" } });
    const at = await seq();
    expect(await confirm("k", "R1")).toMatchObject({ outcome: "CONFIRMED" });
    expect([await seq(), await redis.client.hget(LIVE, "bag"), await free(), await redis.client.zcard(PAYING)]).toEqual(
      [at, "0", 2, 0],
    );
  });
  it("OTHER_PAYMENT for a reference the hold is not bound to, or a hold that is not paying (rule C)", async () => {
    await reserve("k", "c");
    expect(await confirm("k", "R1")).toMatchObject({ outcome: "OTHER_PAYMENT", hold: { state: "held" } });
    await pay("k", "c", "R1");
    expect(await confirm("k", "R0")).toMatchObject({ outcome: "OTHER_PAYMENT", hold: { state: "paying" } });
  });
  it("LOST for a hold that is not there", async () =>
    expect(await confirm("nothing", "R1")).toEqual({ outcome: "LOST" }));
});

describe("decline", () => {
  it("HELD with at least the grace, and again", async () => {
    await reserve("k", "c");
    await redis.client.hset(SALE_KEY, "holdMs", 1);
    await pay("k", "c", "R1");
    const a = await scripts.decline(stamp, [{ key: "k", reference: "R1", graceMs: 90_000, to: "held" }]);
    expect(a.results[0]).toMatchObject({ outcome: "HELD", hold: { deadlineMs: a.nowMs + 90_000 } });
    expect(await decline("k", "R1")).toMatchObject({ outcome: "HELD" });
    expect(await redis.client.zscore(DUE, "k")).toBe(String(a.nowMs + 90_000));
  });
  it("RELEASED when there is no unit to sell; the units are free again once", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    expect(await decline("k", "R1", "released")).toMatchObject({ outcome: "RELEASED" });
    expect(await decline("k", "R1", "released")).toMatchObject({ outcome: "RELEASED" });
    expect(await free()).toBe(3);
  });
  it("OTHER_PAYMENT: a late decline never ends the next attempt, nor a confirmed hold (rule C)", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    await decline("k", "R1");
    await pay("k", "c", "R2", "R1");
    expect(await decline("k", "R1")).toMatchObject({
      outcome: "OTHER_PAYMENT",
      hold: { state: "paying", reference: "R2" },
    });
    await confirm("k", "R2");
    expect(await decline("k", "R2")).toMatchObject({ outcome: "OTHER_PAYMENT", hold: { state: "confirmed" } });
  });
  it("LOST for a hold that is not there", async () =>
    expect(await decline("nothing", "R1")).toEqual({ outcome: "LOST" }));
});

describe("release", () => {
  it("RELEASED gives the units back once", async () => {
    await reserve("k", "c", "bag:2");
    expect(await release("k", "c")).toMatchObject({ outcome: "RELEASED" });
    expect(await release("k", "c")).toMatchObject({ outcome: "RELEASED" });
    expect([await free(), await redis.client.hget(CUSTOMERS, "c")]).toEqual([3, "0|k"]);
  });
  it("EXPIRED, PAYING, CONFIRMED and LOST are told apart and change nothing", async () => {
    await reserve("k", "c");
    await pay("k", "c", "R1");
    expect(await release("k", "c")).toMatchObject({ outcome: "PAYING" });
    await confirm("k", "R1");
    expect(await release("k", "c")).toMatchObject({ outcome: "CONFIRMED" });
    await reserve("l", "d");
    await passDeadlines();
    expect(await release("l", "d")).toMatchObject({ outcome: "EXPIRED" });
    expect(await release("l", "someone-else")).toEqual({ outcome: "LOST" });
  });
});

describe("expire", () => {
  it("gives back due holds oldest first, a bounded batch, each once; none while the clock stands", async () => {
    for (const c of ["a", "b", "c"]) await reserve(c, c);
    await passDeadlines();
    await redis.client.hset(SALE_KEY, "pausedAt", 1);
    expect((await scripts.expire(stamp, 2)).results).toEqual([0]);
    await redis.client.hset(SALE_KEY, "pausedAt", 0);
    expect((await scripts.expire(stamp, 2)).results).toEqual([2]);
    expect((await scripts.expire(stamp, 2)).results).toEqual([1]);
    expect((await scripts.expire(stamp, 2)).results).toEqual([0]);
    expect(await free()).toBe(3);
  });
});

describe("top-up", () => {
  const topUp = async (id: string, delta: number, sku = "bag") =>
    (await scripts.topUp(stamp, { id, sku, delta, customerId: "", units: 0 })).results[0];
  it("APPLIED once by its id, more and less", async () => {
    expect(await topUp("m1", 5)).toEqual({ outcome: "APPLIED", free: 8, live: 0 });
    expect(await topUp("m1", 5)).toEqual({ outcome: "APPLIED", free: 8, live: 0 });
    expect(await topUp("m2", -8)).toEqual({ outcome: "APPLIED", free: 0, live: 0 });
  });
  it("BELOW when fewer are free, after due holds were given back", async () => {
    await reserve("k", "c", "bag:2");
    expect(await topUp("m", -2)).toEqual({ outcome: "BELOW", free: 1, live: 2 });
    await passDeadlines();
    expect(await topUp("m", -2)).toEqual({ outcome: "APPLIED", free: 1, live: 0 });
  });
  it("UNKNOWN_SKU for an item the sale does not have", async () =>
    expect(await topUp("m", 1, "none")).toEqual({ outcome: "UNKNOWN_SKU" }));
  it("ends a customer's paid units with a refund", async () => {
    await reserve("k", "c", "bag:2");
    await pay("k", "c", "R1");
    await confirm("k", "R1");
    for (let i = 0; i < 2; i++)
      await scripts.topUp(stamp, { id: "rf", sku: "bag", delta: 2, customerId: "c", units: 2 });
    expect(await reserve("again", "c", "bag:2")).toMatchObject({ outcome: "HELD" });
  });
});

describe("read, list and stock", () => {
  it("show one epoch's holds, a customer's own, and units with the next deadline", async () => {
    await reserve("k", "c");
    await reserve("l", "c");
    expect((await scripts.read(stamp, ["k", "none"])).results).toMatchObject([{ state: "held" }, null]);
    expect((await scripts.list(stamp, "c")).results.map((r) => r.key)).toEqual(["k", "l"]);
    const view = (await scripts.stock(stamp, ["bag", "box"])).results;
    expect(view).toMatchObject({ heldHolds: 2, payingHolds: 0, journalLength: 2, reserving: true });
    expect(view.items.get("bag")).toEqual({ free: 1, live: 2 });
    await expect(scripts.read({ ...stamp, epoch: 9 }, ["k"])).rejects.toThrow(StaleEpoch);
    await expect(scripts.stock(stamp, ["missing"])).rejects.toThrow("BROKEN");
  });
});

describe("refusal lease", () => {
  const lease = (o: { leaseMs?: number; known?: number; customersMax?: number } = {}) =>
    scripts.refusalLease(stamp, { leaseMs: 200, known: 0, customersMax: 10, skus: ["bag", "box"], ...o });

  it("shows the units and everyone who ever held something, and moves no sequence number", async () => {
    await reserve("a", "c1", "box:1");
    await reserve("b", "c 2");
    await release("b", "c 2");
    const before = await seq();
    const b = await lease();
    expect(b.results).toMatchObject({ reserving: true, customerCount: 2, customers: ["c1", "c 2"] });
    expect(b.results.items).toEqual(
      new Map([
        ["bag", { free: 3, live: 0 }],
        ["box", { free: 0, live: 1 }],
      ]),
    );
    expect(await seq()).toBe(before);
  });
  it("lists the customers only when they are others than the caller knows of, and not too many", async () => {
    await reserve("a", "c1");
    expect((await lease({ known: 1 })).results).toMatchObject({ customerCount: 1, customers: null });
    expect((await lease({ customersMax: 0 })).results).toMatchObject({ customerCount: 1, customers: null });
  });
  it("is a lease: what it shows as out is granted to nobody until it is over, though units came back; other items are, and a replay is answered", async () => {
    await reserve("a", "c1", "box:1");
    await lease({ leaseMs: 400 });
    await release("a", "c1");
    expect(await free("box")).toBe(1);
    // Not sold: it is told with the live ones, due when the lease ends.
    const short = await reserve("b", "c2", "box:1");
    expect(short).toMatchObject({ outcome: "SHORT", lines: [{ sku: "box", free: 0, live: 1 }] });
    if (short?.outcome === "SHORT") expect(short.nextDueMs).toBe(Number(await redis.client.hget(SALE_KEY, "out:box")));
    expect(await reserve("c", "c2", "bag:1")).toMatchObject({ outcome: "HELD" });
    expect(await reserve("a", "c1", "box:1")).toMatchObject({ outcome: "REPLAYED" });
    await until("the lease to be over", async () => (await reserve("d", "c3", "box:1"))?.outcome === "HELD");
  });
  it("is never a lease of more than a second: longer ones are refused, and one of before the clock was set back is over", async () => {
    await expect(lease({ leaseMs: 1_001 })).rejects.toThrow(/lease/);
    await redis.client.hset(SALE_KEY, "out:box", Date.now() + 3_600_000);
    expect(await reserve("a", "c1", "box:1")).toMatchObject({ outcome: "HELD" });
  });
});

describe("configure", () => {
  it("APPLIED for a newer version, OLD for one that is not", async () => {
    expect((await scripts.configure(stamp, 3, { holdMs: 5 })).results).toEqual(["APPLIED"]);
    expect((await scripts.configure(stamp, 2, { holdMs: 9 })).results).toEqual(["OLD"]);
    expect(await redis.client.hget(SALE_KEY, "holdMs")).toBe("5");
  });
});

describe("fence and install", () => {
  const fence = (epoch: number, by = "us", leaseMs = 60_000) => scripts.fence(SALE, epoch, by, leaseMs);
  it("FENCED stops every transition until a newer epoch is installed", async () => {
    await reserve("k", "c");
    expect(await fence(1)).toEqual({ outcome: "FENCED", epoch: 1, seq: 1 });
    await expect(pay("k", "c", "R1")).rejects.toThrow(StaleEpoch);
    expect(await install({ epoch: 2 })).toBe("INSTALLED");
    stamp.epoch = 2;
    // Not before every refusal lease of the epoch before has lapsed.
    expect(await reserve("k", "c")).toMatchObject({ outcome: "SHORT", lines: [{ free: 0 }] });
    await until("the refusal leases to lapse", async () => (await reserve("k", "c"))?.outcome === "HELD");
  });
  it("FENCED keeps out the image of a rebuild that began before, also where the sale is not there yet", async () => {
    expect(await fence(1)).toMatchObject({ outcome: "FENCED" });
    expect(await install({ epoch: 1 })).toBe("NOT_NEWER");
    await redis.client.flushall();
    expect(await fence(4)).toEqual({ outcome: "FENCED", epoch: null, seq: null });
    expect(await fence(2)).toMatchObject({ outcome: "FENCED" });
    expect(await install({ epoch: 4 })).toBe("NOT_NEWER");
    await expect(reserve("k", "c")).rejects.toThrow(StaleEpoch);
    expect(await install({ epoch: 5 })).toBe("INSTALLED");
  });
  it("BUSY while the lease of somebody else's fence lasts, who may renew it", async () => {
    await fence(1, "them");
    expect(await fence(1)).toEqual({ outcome: "BUSY", epoch: 1, seq: 0 });
    expect(await fence(1, "them", 1)).toMatchObject({ outcome: "FENCED" });
    await until("the lease to end", async () => (await fence(1)).outcome === "FENCED");
    // Redis' clock was set back, or its data came from another machine: nobody's lease ends later than a whole one from
    // now.
    await redis.client.hset(SALE_KEY, "fencedBy", "them", "fencedUntil", Date.now() + 3_600_000);
    expect(await fence(1)).toMatchObject({ outcome: "FENCED" });
  });
  it("NEWER when Redis is ahead of Postgres: nothing is fenced", async () => {
    expect(await fence(0)).toMatchObject({ outcome: "NEWER", epoch: 1 });
    expect(await reserve("k", "c")).toMatchObject({ outcome: "HELD" });
  });
  it("NOT_NEWER and OTHER_INSTANCE refuse; nothing of the old image is gone", async () => {
    await reserve("k", "c");
    expect(await install({ epoch: 1 })).toBe("NOT_NEWER");
    expect(await install({ epoch: 2, runId: "0".repeat(40) })).toBe("OTHER_INSTANCE");
    expect((await scripts.read(stamp, ["k"])).results[0]).toMatchObject({ state: "held" });
  });
  it("INSTALLED replaces everything but the journal: holds on their clocks, live units, customers, moves already counted", async () => {
    await reserve("gone", "c");
    const hold = (state: "held" | "paying" | "confirmed", customerId: string) => ({
      state,
      deadlineMs: 5_000,
      reference: state === "held" ? "" : "R",
      lines: "bag:1",
      customerId,
    });
    await install({
      epoch: 2,
      seq: 40,
      free: new Map([
        ["bag", 7],
        ["box", 0],
      ]),
      holds: [
        { key: "h", hold: hold("held", "a") },
        { key: "p", hold: hold("paying", "b") },
        { key: "c", hold: hold("confirmed", "d") },
      ],
      customers: new Map([["a", { units: 1, keys: ["h"] }]]),
      moves: [{ id: "m1", delta: 5 }],
    });
    stamp = { ...stamp, epoch: 2, seqMin: 40 };
    expect([
      await redis.client.hgetall(LIVE),
      await redis.client.zrange(DUE, "0", "-1"),
      await redis.client.zrange(PAYING, "0", "-1"),
    ]).toEqual([{ bag: "2", box: "0" }, ["h"], ["p"]]);
    expect((await scripts.topUp(stamp, { id: "m1", sku: "bag", delta: 5, customerId: "", units: 0 })).results).toEqual([
      { outcome: "APPLIED", free: 7, live: 2 },
    ]);
    expect((await scripts.read(stamp, ["gone"])).results).toEqual([null]);
    expect(await redis.client.xlen(JOURNAL)).toBe(1);
    expect(await reserve("new", "z", "box:1")).toMatchObject({ outcome: "SHORT" });
  });
});

describe("the gate", () => {
  const take = (
    token: string,
    o: { kind?: "charge" | "urgent"; limit?: number; leaseMs?: number; fresh?: boolean } = {},
  ) => scripts.permitTake("g", { limit: 2, leaseMs: 60_000, token, kind: "charge", fresh: true, ...o });
  it("TAKEN first come first served up to the limit, then BUSY; EMPTY without a line", async () => {
    expect(await take("t0")).toEqual({ outcome: "EMPTY" });
    expect(await scripts.lineJoin("g", ["a", "b", "c"])).toEqual([1, 2, 3]);
    expect(await scripts.lineJoin("g", ["a"])).toEqual([1]);
    expect(await take("t1")).toMatchObject({ outcome: "TAKEN", reference: "a" });
    expect(await take("t2")).toMatchObject({ outcome: "TAKEN", reference: "b" });
    expect(await take("t3")).toEqual({ outcome: "BUSY" });
    await scripts.permitGive("g", "t1", 100);
    await scripts.permitGive("g", "t1", null);
    expect(await scripts.gateView("g", ["c", "x"])).toMatchObject({
      inFlight: 1,
      line: 1,
      callMs: 100,
      places: [1, 0],
    });
    expect(await take("t3")).toMatchObject({ outcome: "TAKEN", reference: "c" });
  });
  it("lets urgent calls go before charges", async () => {
    await scripts.lineJoin("g", ["a", "b", "c"]);
    await take("t1");
    await take("t2");
    expect(await take("u", { kind: "urgent" })).toEqual({ outcome: "BUSY" });
    await scripts.permitGive("g", "t1", null);
    expect(await take("t3")).toEqual({ outcome: "BUSY" });
    expect(await take("u", { kind: "urgent" })).toMatchObject({ outcome: "TAKEN", reference: "" });
  });
  const urgent = (token: string, limit = 4) => take(token, { kind: "urgent", limit });
  const line = (n: number) =>
    scripts.lineJoin(
      "g",
      Array.from({ length: n }, (_, i) => `p${i}`),
    );
  it("while charges wait, look-ups, refunds and lists together have a quarter of the permits, and get it; else all", async () => {
    await line(9);
    expect(await take("charge:1", { limit: 4 })).toMatchObject({ outcome: "TAKEN" });
    expect(await urgent("refund:1")).toMatchObject({ outcome: "TAKEN" });
    expect(await urgent("look:1")).toEqual({ outcome: "BUSY" });
    expect(await take("charge:2", { limit: 4 })).toMatchObject({ outcome: "TAKEN" });
    expect(await take("charge:3", { limit: 4 })).toMatchObject({ outcome: "TAKEN" });
    expect(await take("charge:4", { limit: 4 })).toEqual({ outcome: "BUSY" });
    // The share is free again, and wanted: no charge gets it.
    await scripts.permitGive("g", "refund:1", null);
    expect(await take("charge:4", { limit: 4 })).toEqual({ outcome: "BUSY" });
    expect(await urgent("look:1")).toMatchObject({ outcome: "TAKEN" });
    expect((await scripts.gateView("g")).permits).toEqual({ charge: 3, look: 1, refund: 0, list: 0, kept: 0 });
    // Nobody waits in the line: all of them.
    await redis.client.del(gateKeys("g").line);
    for (const t of ["charge:1", "charge:2", "charge:3"]) await scripts.permitGive("g", t, null);
    for (const t of ["refund:2", "refund:3", "list:1"]) expect(await urgent(t)).toMatchObject({ outcome: "TAKEN" });
    expect(await urgent("refund:4")).toEqual({ outcome: "BUSY" });
  });
  it("whoever a shopper waits for goes before refunds and lists, which take turns", async () => {
    await line(9);
    await take("charge:1", { limit: 4 });
    await urgent("refund:1");
    for (const t of ["refund:2", "list:1", "look:1"]) expect(await urgent(t)).toEqual({ outcome: "BUSY" });
    await scripts.permitGive("g", "refund:1", null);
    expect(await urgent("list:1")).toEqual({ outcome: "BUSY" });
    expect(await urgent("look:1")).toMatchObject({ outcome: "TAKEN" });
    await scripts.permitGive("g", "look:1", null);
    expect(await urgent("refund:2")).toEqual({ outcome: "BUSY" });
    expect(await urgent("list:1")).toMatchObject({ outcome: "TAKEN" });
    await scripts.permitGive("g", "list:1", null);
    expect(await urgent("refund:2")).toMatchObject({ outcome: "TAKEN" });
  });
  it("of fewer than four permits the others have one for a quarter of the time", async () => {
    await line(9);
    const served: string[] = [];
    // A worker that sends charges has asked.
    await take("charge:0", { limit: 1 });
    await scripts.permitGive("g", "charge:0", null);
    for (let i = 0; i < 8; i++) {
      const other = await urgent(`refund:${i}`, 1);
      const got = other.outcome === "TAKEN" ? other : await take(`charge:${i}`, { limit: 1 });
      served.push(other.outcome === "TAKEN" ? "refund" : got.outcome === "TAKEN" ? "charge" : got.outcome);
      await scripts.permitGive("g", other.outcome === "TAKEN" ? `refund:${i}` : `charge:${i}`, null);
      // Who was told BUSY stops asking.
      await scripts.permitGive("g", `refund:${i}`, null);
    }
    expect(served).toEqual(["refund", "charge", "charge", "charge", "refund", "charge", "charge", "charge"]);
  });
  it("a permit kept after a lost answer stays out to the end of its lease, and is counted as kept, whoever asks", async () => {
    await line(9);
    await take("charge:1", { limit: 2 });
    const ends = await redis.client.zscore(gateKeys("g").permits, "charge:1");
    await scripts.permitGive("g", "charge:1", null, true);
    await scripts.permitGive("g", "charge:1", null);
    expect(await scripts.gateView("g")).toMatchObject({ inFlight: 1, permits: { charge: 0, kept: 1 } });
    expect(await redis.client.zscore(gateKeys("g").permits, "kept.charge:1")).toBe(ends);
    // A worker of the version before named its permits otherwise: they count as charges.
    await redis.client.zadd(gateKeys("g").permits, Date.now() + 60_000, "V1StGXR8_Z5jdHi6B-myT");
    expect(await take("charge:2", { limit: 2 })).toEqual({ outcome: "BUSY" });
    expect((await scripts.gateView("g")).permits).toMatchObject({ charge: 1, kept: 1 });
  });
  it("a permit that is not given back lapses with its lease, by Redis' clock", async () => {
    await scripts.lineJoin("g", ["a", "b"]);
    await take("t1", { limit: 1, leaseMs: 80 });
    expect(await take("t2", { limit: 1 })).toEqual({ outcome: "BUSY" });
    await until("the lease to lapse", async () => (await take("t2", { limit: 1 })).outcome === "TAKEN");
  });
  it("SHUT for one lease in a Redis that is not the one it knew (rule F)", async () => {
    await scripts.lineJoin("g", ["a"]);
    const first = await take("t1", { fresh: false, leaseMs: 120 });
    expect(first.outcome).toBe("SHUT");
    await until("the gate to open", async () => (await take("t2", { fresh: false, leaseMs: 120 })).outcome === "TAKEN");
    await redis.client.hset(gateKeys("g").gate, "instance", "another");
    expect((await take("t3", { fresh: false })).outcome).toBe("SHUT");
  });
  it("after the clock was set back nothing is out, or shut, for longer than the longest lease that was given", async () => {
    const k = gateKeys("g");
    await scripts.lineJoin("g", ["a", "b"]);
    await take("t1", { limit: 1, leaseMs: 300 });
    await redis.client.zadd(k.permits, Date.now() + 3_600_000, "t1");
    // Another process may be configured with a shorter lease: the call that runs has its own.
    expect(await take("t2", { limit: 1, leaseMs: 1 })).toEqual({ outcome: "BUSY" });
    expect(Number(await redis.client.zscore(k.permits, "t1"))).toBeGreaterThan(Date.now());
    await until("the lease to lapse", async () => (await take("t2", { limit: 1, leaseMs: 1 })).outcome === "TAKEN");
    await redis.client.hset(k.gate, "opensAt", Date.now() + 3_600_000);
    expect(await take("t3", { leaseMs: 1 })).toMatchObject({ outcome: "SHUT" });
    await until("the gate to open", async () => (await take("t3", { leaseMs: 1 })).outcome !== "SHUT");
  });
  it("hands out a line without permits in order, each reference once", async () => {
    await scripts.lineJoin("cod", ["a", "b", "c"]);
    expect(await scripts.lineTake("cod", 2)).toEqual(["a", "b"]);
    expect(await scripts.lineTake("cod", 2)).toEqual(["c"]);
    await pause(0);
  });
});

describe("headers", () => {
  const header = (name: string) => {
    const text = readFileSync(new URL(`../lua/${name}.lua`, import.meta.url), "utf8");
    const lines = text.split("\n");
    const end = lines.findIndex((l, i) => i > 0 && !l.startsWith("--"));
    return { text, comment: lines.slice(1, end).join("\n"), code: lines.slice(end).join("\n") };
  };
  const words = (text: string) => new Set([...text.matchAll(/\b[A-Z][A-Z_]{3,}\b/g)].map((m) => m[0]));
  /** Words in a header that are Redis' or the layout's, not outcomes. */
  const NOT_OUTCOMES = new Set(["KEYS", "ARGV", "STALE_EPOCH", "LATE"]);

  it.each(scriptNames())("%s states guarantee, KEYS, ARGV and exactly the outcomes its code has", (name) => {
    const { comment, code } = header(name);
    for (const part of ["Guarantee:", "KEYS", "ARGV"]) expect(comment).toContain(part);
    expect(comment).toMatch(/(Per (request|key|reference)|Answer):/);
    const said = new Set(
      [...words(comment.slice(comment.search(/(Per (request|key|reference)|Answer):/)))].filter(
        (w) => !NOT_OUTCOMES.has(w),
      ),
    );
    const strings = [...code.matchAll(/'([A-Z][A-Z_]{3,})(?:\|)?'/g)].map((m) => m[1] as string);
    const REDIS = new Set([
      "HGET",
      "HSET",
      "ZADD",
      "ZREM",
      "TIME",
      "INFO",
      "HMGET",
      "ZRANK",
      "ZSCORE",
      "ZCARD",
      "ZRANGE",
      "WITHSCORES",
      "HEXISTS",
      "HINCRBY",
      "ZPOPMIN",
      "ZREMRANGEBYSCORE",
      "ZRANGEBYSCORE",
      "ZCOUNT",
      "XLEN",
      "HLEN",
      "HKEYS",
      "BROKEN",
    ]);
    const made = new Set(
      [...strings, ...[...code.matchAll(/counts\('([A-Z]+)'\)/g)].map((m) => m[1] as string)].filter(
        (w) => !REDIS.has(w),
      ),
    );
    expect([...said].sort()).toEqual([...made].sort());
  });
  it.each(scriptNames())("%s begins with #!lua, is at most 80 lines, and binds no key it was not given", (name) => {
    const { text } = header(name);
    expect(text.startsWith("#!lua")).toBe(true);
    expect(text.split("\n").length).toBeLessThanOrEqual(85);
    expect(scriptText(name).startsWith("#!lua")).toBe(true);
  });
  it("release, expire, confirm and decline work when Redis is out of memory, and reserve is refused", async () => {
    await reserve("k", "c");
    await reserve("l", "d");
    await pay("l", "d", "R1");
    await redis.client.config("SET", "maxmemory", "1");
    try {
      await expect(reserve("m", "e")).rejects.toThrow();
      expect(await release("k", "c")).toMatchObject({ outcome: "RELEASED" });
      expect(await confirm("l", "R1")).toMatchObject({ outcome: "CONFIRMED" });
      expect((await scripts.expire(stamp, 10)).results).toEqual([0]);
    } finally {
      await redis.client.config("SET", "maxmemory", "0");
    }
  });
});
