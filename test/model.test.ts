/**
 * Random histories of the real scripts on a real Redis, beside a model of a few integers and maps. The books are
 * checked after each step.
 */

import fc from "fast-check";
import { expect, it } from "vitest";
import { parseHold } from "../src/domain/hold.ts";
import { RESERVATION_TRANSITIONS, type ReservationState } from "../src/domain/lifecycle.ts";
import { saleKeys } from "../src/stores/keys.ts";
import type { Stamp } from "../src/stores/scripts.ts";
import { redis, scripts, useScripts } from "./lone-redis.ts";
import { assertProperty, commandsReplay } from "./replay.ts";

useScripts({ fsync: "everysec", settings: ["enable-debug-command local"] });

const LIMIT = 3;
const SKUS = ["a", "b"] as const;
const GRACE_MS = 1000;
const HOLD_MS = 1000;
type Units = Record<string, number>;
interface ModelHold {
  customer: string;
  lines: string;
  state: ReservationState;
  due: boolean;
  reference: string;
}
interface Model {
  granted: Units;
  holds: Map<string, ModelHold>;
  moves: Map<string, string>;
}
interface Real {
  stamp: Stamp;
  keys: ReturnType<typeof saleKeys>;
}

const unitsOf = (lines: string): Array<[string, number]> =>
  lines.split(",").map((p) => [p.split(":")[0] as string, Number(p.split(":")[1])]);
const sum = (m: Model, sku: string, states: ReservationState[]) =>
  [...m.holds.values()]
    .filter((h) => states.includes(h.state))
    .reduce((n, h) => n + (unitsOf(h.lines).find(([s]) => s === sku)?.[1] ?? 0), 0);
const freeOf = (m: Model, sku: string) => (m.granted[sku] ?? 0) - sum(m, sku, ["held", "paying", "confirmed"]);
const customerUnits = (m: Model, customer: string) =>
  [...m.holds.values()]
    .filter((h) => h.customer === customer && ["held", "paying", "confirmed"].includes(h.state))
    .reduce((n, h) => n + unitsOf(h.lines).reduce((k, [, q]) => k + q, 0), 0);
const expireDue = (m: Model, which: (h: ModelHold) => boolean = () => true) => {
  for (const h of m.holds.values()) if (h.state === "held" && h.due && which(h)) h.state = "expired";
};

/** P5 in Redis alone, and every index against the holds it indexes. */
async function checkBooks(m: Model, r: Real) {
  const [, free, live, holds, due, paying, customers] = r.keys.transitionKeys as [
    string,
    string,
    string,
    string,
    string,
    string,
    string,
  ];
  const packed = Object.entries(await redis.client.hgetall(holds)).map(([key, text]) => ({
    key,
    hold: parseHold(text),
  }));
  const freeUnits = await redis.client.hgetall(free);
  const liveUnits = await redis.client.hgetall(live);
  for (const sku of SKUS) {
    expect(Number(freeUnits[sku]), `free ${sku}`).toBe(freeOf(m, sku));
    expect(Number(liveUnits[sku]), `live ${sku}`).toBe(sum(m, sku, ["held", "paying"]));
  }
  expect(Object.fromEntries(packed.map((p) => [p.key, p.hold.state]))).toEqual(
    Object.fromEntries([...m.holds].map(([k, h]) => [k, h.state])),
  );
  const inState = (state: ReservationState) =>
    packed
      .filter((p) => p.hold.state === state)
      .map((p) => p.key)
      .sort();
  expect((await redis.client.zrange(due, "0", "-1")).sort()).toEqual(inState("held"));
  expect((await redis.client.zrange(paying, "0", "-1")).sort()).toEqual(inState("paying"));
  for (const [customer, text] of Object.entries(await redis.client.hgetall(customers)))
    expect(Number(text.split("|")[0]), customer).toBe(customerUnits(m, customer));
}

/** A hold may only have moved as lifecycle.ts says. */
function checkSteps(before: Map<string, ReservationState>, m: Model) {
  for (const [key, h] of m.holds) {
    const was = before.get(key);
    if (was && was !== h.state) expect(RESERVATION_TRANSITIONS[was], `${key} ${was} -> ${h.state}`).toContain(h.state);
  }
}

abstract class Step implements fc.AsyncCommand<Model, Real> {
  check = () => true;
  abstract apply(m: Model, r: Real): Promise<void>;
  async run(m: Model, r: Real) {
    const before = new Map([...m.holds].map(([k, h]) => [k, h.state]));
    await this.apply(m, r);
    checkSteps(before, m);
    await checkBooks(m, r);
  }
  toString() {
    return `${this.constructor.name}(${JSON.stringify({ ...this, check: undefined })})`;
  }
}

/** One or two requests in one call, as the coalescer sends them. */
class Reserve extends Step {
  constructor(readonly requests: Array<{ key: string; customer: string; lines: string }>) {
    super();
  }
  async apply(m: Model, r: Real) {
    const { results } = await scripts.reserve(
      r.stamp,
      { sweepMax: 100, journalMax: 1_000_000 },
      this.requests.map((q) => ({ key: q.key, customerId: q.customer, lines: q.lines })),
    );
    for (const [i, q] of this.requests.entries()) {
      const h = m.holds.get(q.key);
      const units = unitsOf(q.lines).reduce((n, [, k]) => n + k, 0);
      let expected: string;
      if (h && (h.customer !== q.customer || h.lines !== q.lines)) expected = "MISMATCH";
      else if (h) {
        expected = "REPLAYED";
        expireDue(m, (x) => x === h);
      } else {
        if (customerUnits(m, q.customer) + units > LIMIT) expireDue(m, (x) => x.customer === q.customer);
        if (customerUnits(m, q.customer) + units > LIMIT) expected = "LIMIT";
        else {
          const short = () => unitsOf(q.lines).some(([sku, n]) => freeOf(m, sku) < n);
          if (short()) expireDue(m);
          expected = short() ? "SHORT" : "HELD";
        }
        if (expected === "HELD")
          m.holds.set(q.key, { customer: q.customer, lines: q.lines, state: "held", due: false, reference: "" });
      }
      expect(results[i]?.outcome).toBe(expected);
    }
  }
}

class Pay extends Step {
  constructor(
    readonly key: string,
    readonly reference: string,
  ) {
    super();
  }
  async apply(m: Model, r: Real) {
    const h = m.holds.get(this.key);
    const before = h?.reference ?? "";
    const { results } = await scripts.pay(r.stamp, [
      { key: this.key, customerId: h?.customer ?? "nobody", reference: this.reference, referenceBefore: before },
    ]);
    expireDue(m, (x) => x === h);
    const words: Record<ReservationState, string> = {
      held: "PAYING",
      paying: h?.reference === this.reference ? "PAYING" : "JOINED",
      confirmed: "CONFIRMED",
      released: "RELEASED",
      expired: "EXPIRED",
    };
    expect(results[0]?.outcome).toBe(h ? words[h.state] : "LOST");
    if (h?.state === "held") Object.assign(h, { state: "paying", reference: this.reference });
  }
}

class Confirm extends Step {
  constructor(
    readonly key: string,
    readonly reference: string,
  ) {
    super();
  }
  async apply(m: Model, r: Real) {
    const h = m.holds.get(this.key);
    const { results } = await scripts.confirm(r.stamp, [{ key: this.key, reference: this.reference }]);
    const matches = h && h.reference === this.reference && (h.state === "paying" || h.state === "confirmed");
    expect(results[0]?.outcome).toBe(!h ? "LOST" : matches ? "CONFIRMED" : "OTHER_PAYMENT");
    if (matches) h.state = "confirmed";
  }
}

class Decline extends Step {
  constructor(
    readonly key: string,
    readonly reference: string,
    readonly to: "held" | "released",
  ) {
    super();
  }
  async apply(m: Model, r: Real) {
    const h = m.holds.get(this.key);
    const { results } = await scripts.decline(r.stamp, [
      { key: this.key, reference: this.reference, graceMs: GRACE_MS, to: this.to },
    ]);
    const matches = h && h.reference === this.reference && h.state !== "confirmed";
    if (matches && h.state === "paying") Object.assign(h, { state: this.to, due: false });
    expect(results[0]?.outcome).toBe(
      !h ? "LOST" : !matches ? "OTHER_PAYMENT" : h.state === "held" ? "HELD" : "RELEASED",
    );
  }
}

class Release extends Step {
  constructor(
    readonly key: string,
    /** Whose it is or someone else, who is told of nothing. */
    readonly by: "owner" | "stranger",
  ) {
    super();
  }
  async apply(m: Model, r: Real) {
    const h = m.holds.get(this.key);
    const customerId = this.by === "owner" ? (h?.customer ?? "nobody") : "stranger";
    const { results } = await scripts.release(r.stamp, [{ key: this.key, customerId }]);
    const theirs = h && this.by === "owner" ? h : undefined;
    if (theirs?.state === "held") theirs.state = theirs.due ? "expired" : "released";
    const words: Record<ReservationState, string> = {
      // Not any more: it was just given back.
      held: "never",
      paying: "PAYING",
      confirmed: "CONFIRMED",
      released: "RELEASED",
      expired: "EXPIRED",
    };
    expect(results[0]?.outcome).toBe(theirs ? words[theirs.state] : "LOST");
  }
}

class Expire extends Step {
  async apply(m: Model, r: Real) {
    const { results } = await scripts.expire(r.stamp, 100);
    expect(results).toEqual([[...m.holds.values()].filter((h) => h.state === "held" && h.due).length]);
    expireDue(m);
  }
}

/** Time passes for every live hold: their deadlines are moved into the past. */
class TimePasses extends Step {
  async apply(m: Model, r: Real) {
    const [, , , holds, due] = r.keys.transitionKeys as [string, string, string, string, string];
    for (const [key, h] of m.holds) {
      if (h.state !== "held") continue;
      h.due = true;
      await redis.client.hset(holds, key, `h|1|${h.reference}|${h.lines}|${h.customer}`);
      await redis.client.zadd(due, 1, key);
    }
  }
}

class TopUp extends Step {
  constructor(
    readonly id: string,
    readonly sku: string,
    readonly delta: number,
  ) {
    super();
  }
  async apply(m: Model, r: Real) {
    const { results } = await scripts.topUp(r.stamp, {
      id: this.id,
      sku: this.sku,
      delta: this.delta,
      customerId: "",
      units: 0,
    });
    if (m.moves.has(this.id)) {
      expect(results[0]?.outcome).toBe("APPLIED");
      return;
    }
    if (freeOf(m, this.sku) + this.delta < 0) expireDue(m);
    const below = freeOf(m, this.sku) + this.delta < 0;
    expect(results[0]?.outcome).toBe(below ? "BELOW" : "APPLIED");
    if (below) return;
    m.moves.set(this.id, this.sku);
    m.granted[this.sku] = (m.granted[this.sku] ?? 0) + this.delta;
  }
}

/** A caller that has seen more than this Redis, or is of another epoch, changes nothing. */
class Stale extends Step {
  async apply(_: Model, r: Real) {
    const requests = [{ key: "stale", customerId: "c0", lines: "a:1" }];
    await expect(
      scripts.reserve({ ...r.stamp, epoch: r.stamp.epoch + 1 }, { sweepMax: 100, journalMax: 1_000_000 }, requests),
    ).rejects.toThrow("stale");
    await expect(
      scripts.reserve({ ...r.stamp, seqMin: 1e9 }, { sweepMax: 100, journalMax: 1_000_000 }, requests),
    ).rejects.toThrow("stale");
  }
}

class Restart extends Step {
  async apply(m: Model, r: Real) {
    // Forgets everything and loads the append-only file, as a restart does.
    await redis.client.call("DEBUG", "LOADAOF");
    await checkBooks(m, r);
  }
}

const key = fc.constantFrom("k0", "k1", "k2", "k3", "k4", "k5");
const customer = fc.constantFrom("c0", "c1", "c|2");
const lines = fc.constantFrom("a:1", "a:2", "b:1", "a:1,b:1", "a:3");
const reference = fc.constantFrom("R0", "R1", "R2", "R3");
const request = fc.record({ key, customer, lines });
const steps = fc.commands(
  [
    fc.array(request, { minLength: 1, maxLength: 3 }).map((requests) => new Reserve(requests)),
    fc.tuple(key, reference).map(([k, p]) => new Pay(k, p)),
    fc.tuple(key, reference).map(([k, p]) => new Confirm(k, p)),
    fc
      .tuple(key, reference, fc.constantFrom("held" as const, "released" as const))
      .map(([k, p, to]) => new Decline(k, p, to)),
    fc
      .tuple(key, fc.constantFrom("owner" as const, "owner" as const, "stranger" as const))
      .map(([k, by]) => new Release(k, by)),
    fc.constant(new Expire()),
    fc.constant(new TimePasses()),
    fc.constant(new Stale()),
    fc.constant(new Restart()),
    fc
      .tuple(
        fc.constantFrom("m0", "m1", "m2", "m3"),
        fc.constantFrom(...SKUS),
        fc.integer({ min: -3, max: 3 }).filter((n) => n !== 0),
      )
      .map(([id, sku, d]) => new TopUp(`${id}${sku}${d}`, sku, d)),
  ],
  { maxCommands: 40, size: "+1", ...commandsReplay() },
);

it("any history of reserve, pay, confirm, decline, release, expire, top-up and repeats keeps the books: free + live + confirmed = granted", async () => {
  let run = 0;
  await assertProperty(
    fc.asyncProperty(steps, async (commands) => {
      const saleId = `m${run++}`;
      const granted: Units = { a: 4, b: 1 };
      await redis.ready(5000);
      const settings = {
        opensAt: 0,
        closesAt: 9e12,
        holdMs: 3_600_000 + HOLD_MS,
        limit: LIMIT,
        reserving: 1,
        shift: 0,
        pausedAt: 0,
        version: 1,
      };
      const runId = redis.instance()?.runId ?? "";
      await scripts.install(saleId, {
        epoch: 1,
        seq: 0,
        runId,
        settings,
        free: new Map(Object.entries(granted)),
        holds: [],
        customers: new Map(),
        moves: [],
      });
      const real: Real = { stamp: { saleId, epoch: 1, seqMin: 0, notAfterMs: 0 }, keys: saleKeys(saleId) };
      await fc.asyncModelRun(
        () => ({ model: { granted: { ...granted }, holds: new Map(), moves: new Map() }, real }),
        commands,
      );
    }),
    { numRuns: 250, interruptAfterTimeLimit: 45_000, markInterruptAsFailure: false, verbose: 1 },
  );
  // A replay of one counterexample is short.
  if (!process.env.FC_PATH) expect(run).toBeGreaterThan(20);
});
