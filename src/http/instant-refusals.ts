/**
 * Refusing from memory. While a sale refuses many, this process keeps a refusal lease of it: what is out, and who holds
 * anything in it. Until the lease is over Redis grants nobody what it shows as out (lua/refusal_lease.lua), on any
 * process. So a customer who is not listed has nothing to replay and is refused without asking anyone; one who is
 * listed is always sent on to Redis (rule O).
 */

import type { Context } from "../context.ts";
import { deadlineAt, type SaleClock } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import type { ReserveResult } from "../stores/replies.ts";
import { Problem } from "./problem.ts";
import { availabilityOf } from "./views.ts";

/** Also how long lua/install.lua assumes that leases of before stand, which it knows nothing about. */
const LEASE_MS = 250;
/** A lease in use is asked for anew when it is this old, so that a storm never falls through to Redis. */
const RENEW_MS = 100;
/**
 * So many refusals by Redis within a lease are a storm. Below it every request is asked of Redis, and stock that comes
 * back is granted at once.
 */
const STORM = 16;
/** Above it the list would cost more than the refusals that it saves. */
const CUSTOMERS_MAX = 100_000;

/** A lease in use is renewed every 100 ms; one that was not for so long is let go when the next sale needs one. */
const IDLE_MS = 60_000;
/** Redis' clock is asked for again when it was last read so long ago: two clocks drift. */
const CLOCK_MS = 1_000;

export type Refused = Exclude<ReserveResult, { outcome: "HELD" | "REPLAYED" }>;

/** What Redis has promised to this process until the lease is over. */
interface Lease {
  epoch: number;
  /** Our monotonic clock when it was asked for: the lease began later. */
  askedAt: number;
  clock: SaleClock;
  opensAtMs: number;
  closesAtMs: number;
  reserving: boolean;
  nextDueMs: number;
  items: Map<string, { free: number; live: number }>;
  anyOut: boolean;
}

/** A sale that is refusing many. */
interface Watch {
  lease: Lease | null;
  loading: boolean;
  refused: number;
  refusedFrom: number;
  customers: Set<string>;
  /** The epoch the set belongs to; -1 when it is not complete. */
  customersOf: number;
}

type LeaseContext = Pick<Context, "log" | "sales" | "scripts">;

/** Asks Redis for a new lease. Without one every request is asked of Redis. */
async function load(ctx: LeaseContext, sale: Sale, w: Watch): Promise<void> {
  w.loading = true;
  try {
    const skus = [...sale.items.keys()];
    let [askedAt, epoch] = [0, 0];
    const a = await ctx.sales.call(sale, (s) => {
      [askedAt, epoch] = [performance.now(), s.epoch];
      const known = w.customersOf === epoch ? w.customers.size : 0;
      return ctx.scripts.refusalLease(s, { leaseMs: LEASE_MS, known, customersMax: CUSTOMERS_MAX, skus });
    });
    const { customers, customerCount, ...view } = a.results;
    if (customers) [w.customers, w.customersOf] = [new Set(customers), epoch];
    else if (customerCount === 0) [w.customers, w.customersOf] = [new Set(), epoch];
    else if (customerCount !== w.customers.size) w.customersOf = -1; // too many to list
    w.lease = { ...view, epoch, askedAt, clock: a, anyOut: [...view.items.values()].some((i) => i.free === 0) };
  } catch (error) {
    w.lease = null;
    ctx.log.debug({ err: error, saleId: sale.id }, "no lease; Redis is asked for each");
  } finally {
    w.loading = false;
  }
}

/** The lease, if it stands and the customer is known to hold nothing. One in use is renewed before it is over. */
function standingLease(ctx: LeaseContext, sale: Sale, w: Watch, customerId: string): Lease | null {
  const { lease } = w;
  if (!lease || lease.epoch !== sale.epoch) return null;
  const age = performance.now() - lease.askedAt;
  if (age > RENEW_MS && !w.loading) void load(ctx, sale, w);
  if (age >= LEASE_MS || w.customersOf !== sale.epoch || w.customers.has(customerId)) return null;
  return lease;
}

/** Redis' clock now as the lease knows it: never too early. */
function clockNow({ clock, askedAt }: Lease): SaleClock {
  const { nowMs, seq, shiftMs, pausedAtMs } = clock;
  return { nowMs: Math.floor(nowMs + (performance.now() - askedAt)), seq, shiftMs, pausedAtMs };
}

/** The refusal that the lease knows of, or null. Without `lines` only what does not depend on the cart. */
function refusedBy(lease: Lease, sale: Sale, lines: string | null): { result: Refused; clock: SaleClock } | null {
  const clock = clockNow(lease);
  if (clock.nowMs >= lease.closesAtMs) return { result: { outcome: "CLOSED" }, clock };
  if (clock.nowMs < lease.opensAtMs) return null; // see tooEarly
  if (!lease.reserving) return { result: { outcome: "PAUSED" }, clock };
  if (lines === null || !lease.anyOut) return null;
  const short: Array<{ sku: string; free: number; live: number }> = [];
  let units = 0;
  for (const part of lines.split(",")) {
    const [sku = "", n] = part.split(":");
    const item = lease.items.get(sku);
    units += Number(n);
    if (item?.free === 0) short.push({ sku, free: 0, live: item.live });
  }
  if (short.length === 0) return null;
  if (units > sale.maxUnitsPerCustomer) return { result: { outcome: "LIMIT", units: 0 }, clock };
  return { result: { outcome: "SHORT", nextDueMs: lease.nextDueMs, lines: short }, clock };
}

export type InstantRefusals = ReturnType<typeof makeInstantRefusals>;

export function makeInstantRefusals(ctx: LeaseContext) {
  const watches = new Map<string, Watch>();

  function watchOf(sale: Sale): Watch {
    let w = watches.get(sale.id);
    if (!w) {
      // Sales that nobody is refused in any more: each may list a hundred thousand customers.
      const now = performance.now();
      for (const [id, old] of watches)
        if (now - Math.max(old.lease?.askedAt ?? 0, old.refusedFrom) > IDLE_MS) watches.delete(id);
      w = { lease: null, loading: false, refused: 0, refusedFrom: 0, customers: new Set(), customersOf: -1 };
      watches.set(sale.id, w);
    }
    return w;
  }

  return {
    /**
     * The refusal of a customer who is known to hold nothing, or null: ask Redis. Without `lines` only what does not
     * depend on the cart, so that the body need not be read.
     */
    refusal(sale: Sale, customerId: string, lines: string | null): { result: Refused; clock: SaleClock } | null {
      const w = watches.get(sale.id);
      const lease = w && standingLease(ctx, sale, w, customerId);
      return lease ? refusedBy(lease, sale, lines) : null;
    },

    /**
     * Before the opening nobody can hold anything, so the clock alone refuses. Only when Redis' clock is known and,
     * judged too fast rather than too slow, still before it; the opening time of a sale never changes.
     */
    tooEarly(sale: Sale): number | null {
      if (sale.clockAheadMs === 0 || performance.now() - sale.clockReadAt > CLOCK_MS) return null;
      const now = Date.now() + sale.clockAheadMs;
      return now < sale.opensAtMs ? sale.opensAtMs - now : null;
    },

    /** Redis has refused one: many of these begin a lease. */
    refused(sale: Sale): void {
      const w = watchOf(sale);
      const now = performance.now();
      if (now - w.refusedFrom > LEASE_MS) [w.refused, w.refusedFrom] = [0, now];
      if (++w.refused >= STORM && !w.loading) void load(ctx, sale, w);
    },

    /** An operator's change is seen here at once; other processes see it when their lease is over. */
    forget(sale: Sale): void {
      const w = watches.get(sale.id);
      if (w) w.lease = null;
    },
  };
}

/**
 * What a reserve that was refused answers. The stock codes name the worst line: sold out before all held before not
 * enough.
 */
export function refusalOf(sale: Sale, lines: string, r: Refused, clock: SaleClock): Problem {
  switch (r.outcome) {
    case "MISMATCH":
      return new Problem("IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used with other lines");
    case "NOT_OPEN":
      return notOpen(sale, Math.max(0, sale.opensAtMs - clock.nowMs));
    case "CLOSED":
      return new Problem("SALE_CLOSED");
    case "PAUSED":
      return new Problem("SALE_PAUSED", undefined, {}, 10_000);
    case "BACKLOG":
      return new Problem("OVERLOADED", "orders are written down too slowly at the moment; try again soon", {}, 3000);
    case "LIMIT":
      return new Problem("LIMIT_REACHED", `${r.units} of ${sale.maxUnitsPerCustomer} units are yours already`, {
        limit: sale.maxUnitsPerCustomer,
        units: r.units,
      });
    case "SHORT":
      return shortOf(lines, r, clock);
  }
}

export const notOpen = (sale: Sale, inMs: number) =>
  new Problem("SALE_NOT_OPEN", undefined, { opensAt: new Date(sale.opensAtMs).toISOString() }, inMs);

function shortOf(lines: string, r: Extract<Refused, { outcome: "SHORT" }>, clock: SaleClock): Problem {
  const asked = new Map(lines.split(",").map((part) => part.split(":") as [string, string]));
  const short = r.lines
    .map((l) => ({ ...l, requested: Number(asked.get(l.sku)) }))
    .filter((l) => l.free < l.requested)
    .map((l) => ({
      ...l,
      code:
        l.free > 0
          ? ("NOT_ENOUGH_FREE" as const)
          : availabilityOf(l) === "sold_out"
            ? ("SOLD_OUT" as const)
            : ("ALL_HELD" as const),
    }));
  const code =
    (["SOLD_OUT", "ALL_HELD", "NOT_ENOUGH_FREE"] as const).find((k) => short.some((l) => l.code === k)) ??
    "NOT_ENOUGH_FREE";
  const more: Record<string, unknown> = { lines: short.map(({ sku, requested, free }) => ({ sku, requested, free })) };
  if (code !== "ALL_HELD") return new Problem(code, undefined, more);
  const nextMs = r.nextDueMs > 0 ? deadlineAt(r.nextDueMs, clock) : null;
  more.nextReleaseAt = nextMs === null ? null : new Date(nextMs).toISOString();
  return new Problem(code, undefined, more, nextMs === null ? 2000 : Math.max(250, nextMs - clock.nowMs));
}
