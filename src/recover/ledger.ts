/**
 * Reading a gateway's own list: under permits, page by page for as long as it says that there is more, tolerant of
 * records that are odd.
 */
import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import { Unavailable } from "../domain/errors.ts";
import type { Permit } from "../gateways/gate.ts";
import { type Gateway, type ListedCharge, type ListPage, ListUnread } from "../gateways/port.ts";

const PERMIT_WAIT_MS = 15_000;
const PAGE = 500;
/** A list that never ends is a fault of the gateway's. */
const PAGES_MAX = 10_000;
/** Who asks within it shares the reading. */
const GATHER_MS = 20;

/** Statuses that say where the money is; any other is for a person. */
export const KNOWN_STATUSES: readonly string[] = [
  "captured",
  "refunded",
  "declined",
  "canceled",
  "action_required",
  "pending",
];

/** The pages after `after`, each with where it began. Calls follow each other under one permit while it covers them. */
export async function* pagesOf(
  ctx: Context,
  gateway: Gateway,
  after: string | null,
  limit: number,
): AsyncGenerator<ListPage & { after: string | null }> {
  const gate = ctx.gates.get(gateway.name);
  let permit: Permit | null = null;
  let lost = false;
  try {
    for (let n = 0; n < PAGES_MAX; n++) {
      if (gate && !permit?.covers()) {
        if (permit) await gate.settle(permit, null, null);
        permit = await gate.takeUrgent("list", PERMIT_WAIT_MS, ctx.draining);
        if (!permit) throw new Unavailable(`the list of ${gateway.name} waits for a permit`, 2000);
      }
      const page = await gateway.list(after, limit).catch((error) => {
        lost = !(error instanceof ListUnread && error.answered);
        throw new Unavailable(`the ledger of ${gateway.name} cannot be read`, 2000, { cause: error });
      });
      yield { ...page, after };
      if (page.next === null || page.next === after) return;
      after = page.next;
    }
  } finally {
    if (gate && permit)
      await gate.settle(permit, lost ? { outcome: "unknown", why: "no answer", answered: false } : null, null);
  }
}

export interface Ledger {
  charges: ListedCharge[];
  odd: number;
  /** Our monotonic clock when the reading began; and Postgres': what was captured later may be missing. */
  beganAt: number;
  asOf: string;
}

interface Readings {
  last: Ledger | null;
  running: Promise<unknown>;
  /** The reading that has not begun: whoever asks now is given it. */
  next: Promise<Ledger> | null;
}
const readings = new WeakMap<Context, Map<string, Readings>>();

async function readAll(ctx: Context, gateway: Gateway): Promise<Ledger> {
  const beganAt = performance.now();
  const [clock] = await ctx.db.execute<{ now: string }>(sql`select now()::text as now`);
  const ledger: Ledger = { charges: [], odd: 0, beganAt, asOf: clock?.now ?? "infinity" };
  for await (const page of pagesOf(ctx, gateway, null, PAGE)) {
    for (const c of page.charges) ledger.charges.push(c);
    ledger.odd += page.odd;
  }
  return ledger;
}

/**
 * The whole list, as it was after it was asked for. Audits that ask at the same time are given one reading, and never
 * is more than one under way. `ageMsMax`: one that began so long ago will do.
 */
export function ledgerOf(ctx: Context, gateway: Gateway, ageMsMax: number): Promise<Ledger> {
  const ofContext = readings.get(ctx) ?? new Map<string, Readings>();
  readings.set(ctx, ofContext);
  const r = ofContext.get(gateway.name) ?? { last: null, running: Promise.resolve(), next: null };
  ofContext.set(gateway.name, r);
  if (r.last && performance.now() - r.last.beganAt <= ageMsMax) return Promise.resolve(r.last);
  if (!r.next) {
    const before = r.running;
    r.next = (async () => {
      await Promise.allSettled([before, new Promise((resolve) => setTimeout(resolve, GATHER_MS))]);
      r.next = null;
      r.last = await readAll(ctx, gateway);
      return r.last;
    })();
    r.running = r.next;
  }
  return r.next;
}
