/**
 * Four explicit-state models: 3-D Secure with a second shopper who wants the bag; a rebuild by two processes that may
 * crash at every step while a payment is claimed; a pin, its payment's row, and a rebuild in between; and two
 * rebuilders, one of them slow. No order of steps may give a fault. The second one shows only that all rules together
 * are sound: leaving out one of them is not noticed there, since a payment in line is rebuilt as paying. The last two
 * cover what it cannot show, because its payment has a row from the start and its rebuilds have no fence.
 */
import { describe, expect, it } from "vitest";

type Step<S> = [name: string, next: S];

/** Collects the steps from a state: each changes a copy of it. */
function stepsFrom<S>(s: S) {
  const out: Array<Step<S>> = [];
  const step = (name: string, change: (n: S) => void) => {
    const n = structuredClone(s);
    change(n);
    out.push([name, n]);
  };
  return { out, step };
}

/**
 * Breadth first; the first faulty state and its shortest trace. `faultsOf` hears whether anything but an outside event
 * can still happen.
 */
function search<S>(first: S, next: (s: S) => Array<Step<S>>, faultsOf: (s: S, quiet: boolean) => string[]) {
  const seen = new Map<string, string[]>([[JSON.stringify(first), []]]);
  const queue = [JSON.stringify(first)];
  for (let key = queue.shift(); key !== undefined; key = queue.shift()) {
    const s = JSON.parse(key) as S;
    const trace = seen.get(key) as string[];
    const steps = next(s);
    const faults = faultsOf(s, !steps.some(([name]) => !name.startsWith("outside:")));
    if (faults.length > 0) return { faults, trace, states: seen.size };
    for (const [name, n] of steps) {
      const to = JSON.stringify(n);
      if (seen.has(to)) continue;
      seen.set(to, [...trace, name]);
      queue.push(to);
    }
  }
  return { faults: [], trace: [], states: seen.size };
}

describe("3-D Secure with two shoppers for one bag", () => {
  interface State {
    free: number;
    claimed: number;
    holds: string[];
    pay: string[];
    gateway: string[];
    orders: number[];
    closing: boolean;
  }
  const first: State = {
    free: 0,
    claimed: 1,
    holds: ["P", "-"],
    pay: ["A", "-"],
    gateway: ["act", "-"],
    orders: [],
    closing: false,
  };
  const next =
    (close: boolean) =>
    (s: State): Array<Step<State>> => {
      const { out, step } = stepsFrom(s);
      if (s.gateway[0] === "act") step("outside: shopper 0 approves at the bank", (n) => (n.gateway[0] = "cap"));
      if (s.pay[0] === "A") {
        if (s.gateway[0] === "cap") step("look-up finds it captured", (n) => (n.pay[0] = "C"));
        if (!close)
          step("the deadline passes: un-claimed, held again", (n) => {
            n.pay[0] = "D";
            n.claimed--;
            n.holds[0] = "H";
          });
        else if (s.gateway[0] === "act" && !s.closing)
          step("the deadline passes: cancelled at the gateway", (n) => {
            n.gateway[0] = "canceled";
            n.closing = true;
          });
        else if (s.closing)
          step("un-claimed, held again", (n) => {
            n.pay[0] = "D";
            n.claimed--;
            n.holds[0] = "H";
          });
      }
      if (s.holds[0] === "H")
        step("the hold of shopper 0 expires", (n) => {
          n.holds[0] = "X";
          n.free++;
        });
      if (s.holds[1] === "-" && s.free > 0)
        step("shopper 1 reserves and pays", (n) => {
          n.free--;
          n.holds[1] = "P";
          n.pay[1] = "Q";
        });
      if (s.pay[1] === "Q")
        step("shopper 1 is claimed and charged", (n) => {
          n.claimed++;
          n.pay[1] = "C";
          n.gateway[1] = "cap";
        });
      for (const i of [0, 1])
        if (s.pay[i] === "C" && !s.orders.includes(i))
          step(`the order of shopper ${i}`, (n) => {
            n.orders.push(i);
            n.orders.sort();
            if (n.holds[i] === "P") n.holds[i] = "C";
          });
      return out;
    };
  const faultsOf = (s: State, quiet: boolean) => {
    const out: string[] = [];
    const captured = s.gateway.filter((g) => g === "cap").length;
    if (captured > 1) out.push("P1: two captured, one granted");
    if (s.claimed > 1) out.push("claimed over granted");
    if (quiet && captured !== s.orders.length) out.push("P2: a capture without an order");
    return out;
  };
  it("cancelling at the gateway before releasing keeps every order of steps sound", () => {
    expect(search(first, next(true), faultsOf)).toMatchObject({ faults: [] });
  });
  it("without it the bag is sold and charged twice", () => {
    expect(search(first, next(false), faultsOf).faults).toContain("P1: two captured, one granted");
  });
});

describe("two rebuilders that may crash, while a payment is claimed", () => {
  interface State {
    pg: { ep: number; claimed: number; pay: string; mirror: boolean };
    /** Redis: epoch 0 = empty. */
    redis: { ep: number; free: number; hold: string };
    worker: { at: string; ep: number } | null;
    builders: Array<{ ep: number; free: number; hold: string; at: string } | null>;
    crashes: number;
    wipes: number;
  }
  const first: State = {
    pg: { ep: 1, claimed: 0, pay: "Q", mirror: true },
    redis: { ep: 1, free: 0, hold: "P" },
    worker: null,
    builders: [null, null],
    crashes: 2,
    wipes: 1,
  };
  const next = (s: State): Array<Step<State>> => {
    const { out, step } = stepsFrom(s);
    const healthy = s.redis.ep === s.pg.ep;
    if (s.wipes > 0)
      step("outside: Redis is emptied", (n) => {
        n.wipes--;
        n.redis = { ep: 0, free: 0, hold: "-" };
      });
    if (healthy && !s.worker && s.pg.pay === "Q" && s.redis.hold === "P")
      step("a worker takes the payment", (n) => (n.worker = { at: "claim", ep: s.redis.ep }));
    if (healthy && !s.worker && s.pg.pay === "C" && s.redis.hold === "P")
      step("reconcile confirms the hold", (n) => (n.redis.hold = "C"));
    if (s.worker?.at === "claim")
      step("it claims and charges", (n) => {
        n.worker = null;
        if (s.worker?.ep !== s.pg.ep || n.pg.claimed >= 1) return;
        n.pg.claimed++;
        n.pg.pay = "C";
      });
    s.builders.forEach((b, k) => {
      const snapshot = (ep: number) => {
        const hold = s.pg.pay === "C" ? "C" : s.pg.mirror ? "P" : "-";
        return { ep, hold, free: 1 - s.pg.claimed - (hold === "P" ? 1 : 0), at: "install" };
      };
      if (!b && !healthy)
        step(`b${k}: raises the epoch and takes the snapshot`, (n) => {
          n.pg.ep++;
          n.builders[k] = snapshot(n.pg.ep);
        });
      if (b && s.crashes > 0)
        step(`outside: b${k} crashes`, (n) => {
          n.crashes--;
          n.builders[k] = null;
        });
      if (b)
        step(`b${k}: installs epoch ${b.ep}`, (n) => {
          n.builders[k] = null;
          if (n.redis.ep >= b.ep) return;
          n.redis = { ep: b.ep, free: b.free, hold: b.hold };
        });
    });
    // Bounded: raising for ever is no new state of interest.
    return s.pg.ep > 6 ? out.filter(([name]) => !name.includes("raises")) : out;
  };
  const faultsOf = (s: State, quiet: boolean) => {
    if (!quiet || s.redis.ep !== s.pg.ep) return [];
    const held = s.redis.hold === "P" && s.pg.pay !== "C" ? 1 : 0;
    return s.redis.free + held + s.pg.claimed === 1
      ? []
      : [`P5: free ${s.redis.free} + held ${held} + claimed ${s.pg.claimed} is not 1`];
  };
  it("with every rule on the books balance in every order of steps", () => {
    const r = search(first, next, faultsOf);
    expect(r.faults, r.trace.join("\n")).toEqual([]);
    expect(r.states).toBeGreaterThan(100);
  });
});

describe("a pin, its payment's row, and a rebuild in between", () => {
  interface State {
    /** Rows: - none, Q queued, C captured, X no unit to claim. Mirror: what persist has written of each hold. */
    pg: { ep: number; claimed: number; rows: string[]; mirror: string[] };
    /** Holds: - none, H held, P paying, C confirmed, X over. */
    redis: { ep: number; free: number; holds: string[] };
    /** The epoch of a pin whose row is under way; 0 = none. */
    pins: number[];
    wipes: number;
  }
  const first: State = {
    pg: { ep: 1, claimed: 0, rows: ["-", "-"], mirror: ["-", "-"] },
    redis: { ep: 1, free: 1, holds: ["-", "-"] },
    pins: [0, 0],
    wipes: 1,
  };
  const over = (n: State, i: number) => {
    n.redis.holds[i] = "X";
    n.redis.free++;
  };
  function rebuilt(n: State): void {
    n.pg.ep++;
    const holds = [0, 1].map(
      (i) => ({ Q: "P", C: "C" })[n.pg.rows[i] as string] ?? (n.pg.mirror[i] === "H" ? "H" : "-"),
    );
    let free = 1 - n.pg.claimed;
    // Payments in line before plain holds; who does not fit is over.
    for (const word of ["P", "H"])
      for (const i of [0, 1])
        if (holds[i] === word) {
          if (free > 0) free--;
          else holds[i] = "X";
        }
    n.redis = { ep: n.pg.ep, free, holds };
  }
  const next =
    (guarded: boolean) =>
    (s: State): Array<Step<State>> => {
      const { out, step } = stepsFrom(s);
      const healthy = s.redis.ep === s.pg.ep;
      if (s.wipes > 0)
        step("outside: Redis is emptied", (n) => {
          n.wipes--;
          n.redis = { ep: 0, free: 0, holds: ["-", "-"] };
        });
      if (!healthy) step("the sale is rebuilt", rebuilt);
      for (const i of [0, 1]) {
        const hold = s.redis.holds[i] as string;
        const row = s.pg.rows[i] as string;
        const pin = s.pins[i] as number;
        if (pin > 0)
          step(`the row of ${i} is written`, (n) => {
            n.pins[i] = 0;
            if (row === "-" && (!guarded || pin === s.pg.ep)) n.pg.rows[i] = "Q";
          });
        if (!healthy) continue;
        if (hold === "-" && row === "-" && pin === 0 && s.redis.free > 0)
          step(`${i} reserves`, (n) => {
            n.redis.free--;
            n.redis.holds[i] = "H";
          });
        if (hold === "H" && row === "-" && pin === 0) {
          step(`${i} presses pay`, (n) => {
            n.redis.holds[i] = "P";
            n.pins[i] = s.redis.ep;
          });
          step(`the hold of ${i} expires`, (n) => over(n, i));
        }
        // A payment of before that is not this hold's own: the hold runs out under it.
        if (hold === "H" && row !== "-") step(`the hold of ${i} expires`, (n) => over(n, i));
        if (hold === "P" && row === "-" && pin === 0)
          step(`reconcile gives ${i} back`, (n) => (n.redis.holds[i] = "H"));
        if (row === "Q")
          step(`${i} is claimed and charged`, (n) => {
            n.pg.rows[i] = s.pg.claimed < 1 ? "C" : "X";
            if (s.pg.claimed < 1) n.pg.claimed++;
          });
        if (row === "C" && hold === "P") step(`${i} is confirmed`, (n) => (n.redis.holds[i] = "C"));
        if (row === "X" && hold === "P") step(`${i} is released: there is no unit`, (n) => over(n, i));
        const mirrored = hold === "P" ? "H" : hold;
        if (hold !== "-" && s.pg.mirror[i] !== mirrored)
          step(`the hold of ${i} is persisted`, (n) => (n.pg.mirror[i] = mirrored));
      }
      return out;
    };
  const faultsOf = (s: State, quiet: boolean) => {
    if (!quiet) return [];
    const live = s.redis.holds.filter((h, i) => (h === "H" || h === "P") && s.pg.rows[i] !== "C").length;
    return s.redis.free + live + s.pg.claimed === 1
      ? []
      : [`P5: free ${s.redis.free} + held ${live} + claimed ${s.pg.claimed} is not 1`];
  };
  it("a row that is refused with its pin's epoch keeps the books in every order of steps", () => {
    const r = search(first, next(true), faultsOf);
    expect(r.faults, r.trace.join("\n")).toEqual([]);
    expect(r.states).toBeGreaterThan(300);
  });
  it("a row that is written all the same leaves a unit on offer that does not exist", () => {
    const r = search(first, next(false), faultsOf);
    expect(r.faults.join()).toContain("P5");
    expect(r.trace).toContain("the sale is rebuilt");
  });
});

describe("two rebuilders, one of them slow, and a hold that is granted in between", () => {
  interface State {
    /** The hold's row in the mirror: - or H. */
    pg: { ep: number; mirror: string };
    /** Epoch 0 = no such sale; fenced 0 = not. The journal has the hold's entry with its epoch, 0 = none. */
    redis: { ep: number; fenced: number; hold: string; journal: number };
    builders: Array<{ at: "read" | "fenced" | "drained" | "raised"; ep: number; hold: string } | null>;
    granted: boolean;
  }
  interface Rules {
    /** The fence is kept where there is no sale, and refuses images of its epoch and before. */
    kept: boolean;
    /** What is raised is the epoch that was fenced. */
    same: boolean;
  }
  const first: State = {
    pg: { ep: 0, mirror: "-" },
    redis: { ep: 0, fenced: 0, hold: "-", journal: 0 },
    builders: [null, null],
    granted: false,
  };
  const persisted = (n: State) => {
    if (n.redis.journal >= n.pg.ep && n.redis.journal > 0) n.pg.mirror = "H";
  };
  const next =
    ({ kept, same }: Rules) =>
    (s: State): Array<Step<State>> => {
      const { out, step } = stepsFrom(s);
      const live = s.redis.ep > 0 && s.redis.fenced === 0;
      if (live && !s.granted)
        step(`a hold is granted in epoch ${s.redis.ep}`, (n) => {
          n.granted = true;
          n.redis.hold = "H";
          n.redis.journal = s.redis.ep;
        });
      if (s.redis.journal > 0)
        step("persist writes it", (n) => {
          persisted(n);
          n.redis.journal = 0;
        });
      s.builders.forEach((b, k) => {
        const to = (n: State, change: Partial<NonNullable<State["builders"][number]>>) => {
          n.builders[k] = { at: "read", ep: 0, hold: "-", ...b, ...change };
        };
        if (!b && !(live && s.redis.ep === s.pg.ep))
          step(`b${k}: sees that the sale is not whole`, (n) => to(n, { ep: s.pg.ep }));
        if (b?.at === "read")
          step(`b${k}: fences epoch ${b.ep}`, (n) => {
            if (s.redis.ep > b.ep) n.builders[k] = null;
            else {
              if (kept || s.redis.ep > 0) n.redis.fenced = Math.max(s.redis.fenced, b.ep, 0.5);
              to(n, { at: "fenced" });
            }
          });
        if (b?.at === "fenced")
          step(`b${k}: drains the journal`, (n) => {
            persisted(n);
            to(n, { at: "drained" });
          });
        if (b?.at === "drained")
          step(`b${k}: raises the epoch and takes the snapshot`, (n) => {
            if (same && b.ep !== s.pg.ep) n.builders[k] = null;
            else {
              n.pg.ep++;
              to(n, { at: "raised", ep: n.pg.ep, hold: s.pg.mirror });
            }
          });
        if (b?.at === "raised")
          step(`b${k}: installs epoch ${b.ep}`, (n) => {
            n.builders[k] = null;
            if (s.redis.ep >= b.ep || (kept && s.redis.fenced >= b.ep)) return;
            n.redis = { ep: b.ep, fenced: 0, hold: b.hold, journal: s.redis.journal };
          });
      });
      return s.pg.ep > 4 ? out.filter(([name]) => !name.includes("raises")) : out;
    };
  const faultsOf = (s: State, quiet: boolean) =>
    quiet && s.granted && s.redis.ep === s.pg.ep && s.redis.hold !== "H"
      ? ["a hold is gone, and Redis never failed"]
      : [];
  it("no order of steps loses the hold", () => {
    const r = search(first, next({ kept: true, same: true }), faultsOf);
    expect(r.faults, r.trace.join("\n")).toEqual([]);
    expect(r.states).toBeGreaterThan(500);
  });
  it("a fence that does not keep earlier images out loses it", () => {
    expect(search(first, next({ kept: false, same: true }), faultsOf).faults.join()).toContain("gone");
  });
  it("raising another epoch than the one that was fenced loses it", () => {
    expect(search(first, next({ kept: true, same: false }), faultsOf).faults.join()).toContain("gone");
  });
});
