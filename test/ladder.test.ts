/**
 * An explicit-state model of the ladder for late money, which the protocol's first model did not cover: a gateway that
 * captures after it had said declined, two reconcilers that may crash at every step, a shopper who pays again, another
 * who wants the bag, and expiry. Breadth first over every order of steps, so a trace is a shortest one. Each rule taken
 * out must give a trace; all rules on must give none.
 */
import { describe, expect, it } from "vitest";

type Pc = { at: "decline" | "pin" | "claim" | "refund" | "confirm" | "repin"; ref: string } | null;
interface State {
  free: number;
  claimed: number;
  /** Of reservation 0 and 1: state letter, reference, and whether its grace after a decline still runs. */
  holds: Array<{ s: "-" | "H" | "P" | "C" | "X"; ref: string; grace: boolean }>;
  /** Queued, captured, declined, refunding, refunded (Z). */
  pay: Record<string, "Q" | "C" | "D" | "r" | "Z">;
  gateway: Record<string, "cap" | "rfd">;
  orders: string[];
  workers: Pc[];
  crashes: number;
  late: number;
}
interface Rules {
  /**
   * The hold is pinned again before the units are claimed again; without it they are claimed whenever Postgres has
   * room.
   */
  pin: boolean;
  /** A confirm that finds its hold held under the same reference pins it again. */
  repin: boolean;
  /** At most one live payment per reservation (rule H). */
  one: boolean;
  /** decline and confirm carry the reference (rule C). */
  ref: boolean;
  /** An honoured capture is followed up until its hold is confirmed, also when its order is recorded already. */
  watch: boolean;
}
const ALL: Rules = { pin: true, repin: true, one: true, ref: true, watch: true };
const GRANTED = 1;

const reservationOf = (ref: string) => Number(ref[0]);
const start = (): State => ({
  free: 0,
  claimed: 0,
  // Reservation 0 is paying under 0a, which the gateway has declined and Postgres has recorded so; the hold was not
  // told yet.
  holds: [
    { s: "P", ref: "0a", grace: false },
    { s: "-", ref: "", grace: false },
  ],
  pay: { "0a": "D" },
  gateway: {},
  orders: [],
  workers: [null, null],
  crashes: 2,
  late: 1,
});

/** All steps that are possible now, each with the state it leads to. */
function next(s: State, rules: Rules): Array<[string, State]> {
  const m = new Moves(s, rules);
  lateCapture(m);
  shoppers(m);
  clocks(m);
  // Reconcilers: two that do not know of each other, either may crash between any two steps.
  for (const [k, pc] of s.workers.entries()) {
    if (!pc) {
      findWork(m, k);
      continue;
    }
    if (s.crashes > 0)
      m.step(`w${k} crashes before ${pc.at} ${pc.ref}`, (n) => {
        n.crashes--;
        n.workers[k] = null;
      });
    WORK[pc.at](m, k, pc.ref);
  }
  return m.out;
}

class Moves {
  readonly out: Array<[string, State]> = [];

  constructor(
    readonly s: State,
    readonly rules: Rules,
  ) {}

  /** `f` answers false where it is not possible after all. */
  step(name: string, f: (n: State) => unknown): void {
    const n = structuredClone(this.s);
    if (f(n) !== false) this.out.push([name, n]);
  }
  /** A step of reconciler `k`; `f` answers what it does next. */
  go(k: number, name: string, f: (n: State) => Pc): void {
    this.step(`w${k}: ${name}`, (n) => {
      n.workers[k] = f(n);
    });
  }
  matches = (n: State, ref: string) => !this.rules.ref || holdOf(n, ref).ref === ref;
  /** No unit is left, or another payment of the reservation is live. */
  noRoom = (n: State, ref: string) => n.claimed >= GRANTED || (this.rules.one && othersLive(n, ref));
}

const holdOf = (n: State, ref: string) => n.holds[reservationOf(ref)] as State["holds"][0];
const othersLive = (n: State, ref: string) =>
  Object.entries(n.pay).some(
    ([r, p]) => r !== ref && reservationOf(r) === reservationOf(ref) && (p === "Q" || p === "C"),
  );

/** The gateway breaks its word, once. */
function lateCapture(m: Moves): void {
  const { s } = m;
  if (s.late > 0 && s.pay["0a"] === "D" && !s.gateway["0a"])
    m.step("the gateway captures 0a after all", (n) => {
      n.late--;
      n.gateway["0a"] = "cap";
    });
}

function shoppers(m: Moves): void {
  const { s, rules } = m;
  const [zero, one] = s.holds as [State["holds"][0], State["holds"][0]];
  if (zero.s === "H" && zero.ref === "0a")
    m.step("shopper 0 pays again: 0b", (n) => {
      if (rules.one && s.pay["0a"] !== "D") return false; // its row would be refused
      Object.assign(holdOf(n, "0a"), { s: "P", ref: "0b" });
      n.pay["0b"] = "Q";
      return true;
    });
  if (one.s === "-" && s.free > 0)
    m.step("shopper 1 reserves and pays: 1a", (n) => {
      n.free--;
      n.holds[1] = { s: "P", ref: "1a", grace: false };
      n.pay["1a"] = "Q";
    });
  for (const ref of ["0b", "1a"])
    if (s.pay[ref] === "Q")
      m.step(`claim and charge ${ref}`, (n) => {
        if (m.noRoom(n, ref)) n.pay[ref] = "D";
        else {
          n.claimed++;
          n.pay[ref] = "C";
          n.gateway[ref] = "cap";
        }
      });
}

/** Grace is minutes and recovery seconds: it ends only when there is nothing left to recover. */
function clocks(m: Moves): void {
  const { s, rules } = m;
  const isWatched = (r: string) => rules.watch && rules.repin && holdOf(s, r).ref === r && holdOf(s, r).s === "H";
  const open =
    s.workers.some((w) => w !== null) ||
    Object.entries(s.pay).some(
      ([r, p]) => (p === "C" && (!s.orders.includes(r) || isWatched(r))) || (p === "D" && s.gateway[r] === "cap"),
    );
  for (const [i, h] of s.holds.entries())
    if (h.s === "H" && (!h.grace || !open))
      m.step(`r${i} expires`, (n) => {
        Object.assign(n.holds[i] as object, { s: "X" });
        n.free++;
      });
}

/** What a reconciler that has nothing to do comes upon. */
function findWork(m: Moves, k: number): void {
  const { s, rules } = m;
  for (const h of s.holds) {
    if (h.s === "P" && s.pay[h.ref] === "C" && s.orders.includes(h.ref))
      m.go(k, `finds ${h.ref} captured, its hold paying`, () => ({ at: "confirm", ref: h.ref }));
    if (rules.watch && h.s === "H" && h.ref === "0a" && s.pay["0a"] === "C")
      m.go(k, "finds 0a honoured, its hold held", () => ({ at: "confirm", ref: "0a" }));
  }
  for (const h of s.holds)
    if (h.s === "P" && s.pay[h.ref] === "D")
      m.go(k, `finds ${h.ref} declined, its hold paying`, () => ({ at: "decline", ref: h.ref }));
  for (const [ref, p] of Object.entries(s.pay)) {
    if (p === "D" && s.gateway[ref] === "cap")
      m.go(k, `finds ${ref} captured late`, () => ({ at: rules.pin ? "pin" : "claim", ref }));
    if (p === "C" && !s.orders.includes(ref))
      m.go(k, `records the order of ${ref}`, (n) => {
        n.orders.push(ref);
        return { at: "confirm", ref };
      });
    if (p === "r" && s.gateway[ref] === "cap")
      m.go(k, `refunds ${ref}`, (n) => {
        n.gateway[ref] = "rfd";
        n.pay[ref] = "Z";
        return null;
      });
  }
}

type Work = (m: Moves, k: number, ref: string) => void;
const confirm =
  (at: "confirm" | "repin"): Work =>
  (m, k, ref) =>
    m.go(k, `confirms ${ref}`, (n) => {
      const h = holdOf(m.s, ref);
      if (h.s === "P" && m.matches(n, ref)) Object.assign(holdOf(n, ref), { s: "C" });
      else if (m.rules.repin && at === "confirm" && h.s === "H" && h.ref === ref) {
        Object.assign(holdOf(n, ref), { s: "P" });
        return { at: "repin", ref };
      }
      return null;
    });
/** What a reconciler does at each rung. */
const WORK: Record<NonNullable<Pc>["at"], Work> = {
  decline: (m, k, ref) =>
    m.go(k, `declines the hold of ${ref}`, (n) => {
      if (holdOf(m.s, ref).s === "P" && m.matches(n, ref)) Object.assign(holdOf(n, ref), { s: "H", grace: true });
      return null;
    }),
  pin: (m, k, ref) =>
    m.go(k, `pins ${ref} again`, (n) => {
      const h = holdOf(m.s, ref);
      if (h.ref !== ref || (h.s !== "H" && h.s !== "P")) return { at: "refund", ref };
      Object.assign(holdOf(n, ref), { s: "P" });
      return { at: "claim", ref };
    }),
  claim: (m, k, ref) =>
    m.go(k, `claims ${ref} again`, (n) => {
      if (n.pay[ref] !== "D") return null;
      if (m.noRoom(n, ref)) return { at: "refund", ref };
      n.claimed++;
      n.pay[ref] = "C";
      return { at: "confirm", ref };
    }),
  refund: (m, k, ref) =>
    m.go(k, `will refund ${ref}`, (n) => {
      if (n.pay[ref] === "D") n.pay[ref] = "r";
      return null;
    }),
  confirm: confirm("confirm"),
  repin: confirm("repin"),
};

function faults(s: State, quiet: boolean): string[] {
  const out: string[] = [];
  const captured = Object.entries(s.gateway).filter(([, g]) => g === "cap");
  const explained = captured.filter(([ref]) => s.pay[ref] === "C");
  if (explained.length > GRANTED) out.push("P1: more units sold than granted");
  for (const i of [0, 1])
    if (explained.filter(([ref]) => reservationOf(ref) === i).length > 1)
      out.push(`r${i} was charged twice and both stand`);
  if (s.claimed > GRANTED) out.push("claimed over granted");
  if (!quiet) return out;
  for (const [ref] of captured)
    if (!s.orders.includes(ref)) out.push(`P2: ${ref} is captured, without an order or a refund`);
  const live = s.holds.filter((h) => (h.s === "H" || h.s === "P") && s.pay[h.ref] !== "C").length;
  if (s.free + live + s.claimed !== GRANTED)
    out.push(`P5: free ${s.free} + held ${live} + claimed ${s.claimed} is not ${GRANTED}`);
  s.holds.forEach((h, i) => {
    if (h.s === "P") out.push(`r${i} stays paying`);
    if (h.s === "X" && s.orders.includes(h.ref)) out.push(`r${i} was told expired and has an order`);
  });
  return out;
}

function search(rules: Rules): { trace: string[]; faults: string[]; states: number } {
  const first = start();
  const seen = new Map<string, { from: string | null; by: string }>([[JSON.stringify(first), { from: null, by: "" }]]);
  const queue = [JSON.stringify(first)];
  for (let key = queue.shift(); key !== undefined; key = queue.shift()) {
    const s = JSON.parse(key) as State;
    const steps = next(s, rules);
    // A capture that may still come, and a crash that may still happen, are no progress.
    const quiet = !steps.some(([name]) => !/crashes|captures/.test(name));
    const found = faults(s, quiet);
    if (found.length > 0) {
      const trace: string[] = [];
      for (let at: string | null = key; at !== null; at = seen.get(at)?.from ?? null)
        trace.unshift(seen.get(at)?.by ?? "");
      return { trace: trace.slice(1), faults: found, states: seen.size };
    }
    for (const [by, n] of steps) {
      const to = JSON.stringify(n);
      if (seen.has(to)) continue;
      seen.set(to, { from: key, by });
      queue.push(to);
    }
  }
  return { trace: [], faults: [], states: seen.size };
}

describe("the ladder for late money, in every order of steps", () => {
  it("with every rule on: no unit lost or sold twice, no charge without an order or a refund, nobody told expired has an order", () => {
    const r = search(ALL);
    expect(r.faults, r.trace.join("\n")).toEqual([]);
    expect(r.states).toBeGreaterThan(300);
  });
  it.each(["pin", "repin", "one", "ref", "watch"] as const)(
    "without the rule %s there is a trace that breaks the books",
    (rule) => {
      const r = search({ ...ALL, [rule]: false });
      expect(r.faults).not.toEqual([]);
      console.log(`without ${rule}: ${r.faults.join("; ")}\n  ${r.trace.join("\n  ")}`);
    },
  );
});
