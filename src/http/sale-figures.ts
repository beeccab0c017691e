/** What operators watch: the figures of a sale, the requests of this node, the books; read once a second however many watch. */

import { EventEmitter } from "node:events";
import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import type { Sale } from "../domain/sale.ts";
import { needsPerson } from "../payments/rows.ts";
import { type Audit, auditSale } from "../recover/audit.ts";
import { saleKeys } from "../stores/keys.ts";
import { gates as gateTable } from "../stores/schema.ts";
import { saleStatus } from "./views.ts";

const SAMPLE_MS = 1_000;
/** A quarter of an hour, so that the opening minute is still there when somebody opens the page after it. */
const POINTS_MAX = 900;
/** Items of a sale whose history is kept; figures are shown of all. */
const HISTORY_ITEMS_MAX = 20;
const BOOKS_MS = 15_000;
/** One reading of the gateway's list for all of them. */
const LEDGER_MS = 5_000;
const WATCHERS_MAX = 50;
/** Events that wait for one reader; each may be large. */
const BEHIND_MAX = 30;
/** So long after its end a sale is still watched: refunds and late mails belong to it. */
const WATCHED_AFTER_MS = 7 * 86_400_000;

/** A sale as operators see it: settings, units, gates, journal and outbox. */
export async function saleFigures(ctx: Context, sale: Sale) {
  const a = await ctx.sales.call(sale, (s) => ctx.scripts.stock(s, [...sale.items.keys()]));
  const rows = await ctx.db.execute<{
    sku: string;
    granted: number;
    claimed: number;
    claimed_live: number;
    sold: number;
  }>(sql`
    with ordered as (
      select l.sku, sum(l.quantity) as sold from orders o join order_lines l on l.order_id = o.id
      where o.sale_id = ${sale.id} and o.status <> 'refunded' group by l.sku
    ), unsettled as (
      select l ->> 'sku' as sku, sum((l ->> 'quantity')::int) as claimed_live from payments p cross join jsonb_array_elements(p.lines) l
      where p.sale_id = ${sale.id} and p.claimed and p.state in ('sending', 'action_required', 'unknown') group by 1
    )
    select i.sku, i.granted, i.claimed, coalesce(sold, 0)::int as sold, coalesce(claimed_live, 0)::int as claimed_live
    from items i left join ordered using (sku) left join unsettled using (sku) where i.sale_id = ${sale.id} order by i.position`);
  const [mails] = await ctx.db.execute<{ queued: number; sent: number; failed: number; oldestMs: number }>(sql`
    select count(*) filter (where state = 'queued')::int as queued, count(*) filter (where state = 'sent')::int as sent,
      count(*) filter (where state = 'failed')::int as failed,
      coalesce(extract(epoch from now() - (select min(o.recorded_at) from outbox b join orders o on o.id = b.order_id
        where b.sale_id = ${sale.id} and b.state = 'queued')) * 1000, 0)::int as "oldestMs"
    from outbox where sale_id = ${sale.id}`);
  const [oldest] = await ctx.redis.client.xrange(saleKeys(sale.id).journal, "-", "+", "COUNT", 1);
  const breakers = new Map((await ctx.db.select().from(gateTable)).map((g) => [g.gateway, g.breakerUntil]));
  const [open] = await ctx.db.execute<{
    queued: number;
    sending: number;
    action_required: number;
    unknown: number;
    refunding: number;
    attention: number;
  }>(sql`
    select count(*) filter (where state = 'queued')::int as queued, count(*) filter (where state = 'sending')::int as sending,
      count(*) filter (where state = 'action_required')::int as action_required, count(*) filter (where state = 'unknown')::int as unknown,
      count(*) filter (where state = 'refunding')::int as refunding,
      (select count(*)::int from payments where sale_id = ${sale.id} and ${needsPerson}) as attention
    from payments where sale_id = ${sale.id} and state in ('queued', 'sending', 'action_required', 'unknown', 'refunding')`);
  const v = a.results;
  const gates = await Promise.all(
    [...ctx.gates.values()].map(async (g) => {
      const view = await ctx.scripts.gateView(g.gateway);
      const { inFlight, line, callMs, opensInMs, permits } = view;
      // A worker that ended while it waited cannot say so: what is over is over.
      const breaker = (breakers.get(g.gateway)?.getTime() ?? 0) > Date.now() ? "open" : "closed";
      return {
        gateway: g.gateway,
        limit: g.limit,
        inFlight,
        permits,
        line,
        callMs,
        opensInMs,
        waitMs: opensInMs + Math.ceil(line / g.limit) * callMs,
        breaker,
      };
    }),
  );
  return {
    id: sale.id,
    name: sale.name,
    status: saleStatus({ nowMs: a.nowMs, opensAtMs: v.opensAtMs, closesAtMs: v.closesAtMs, reserving: v.reserving }),
    currency: sale.currency,
    holdMs: sale.holdMs,
    maxUnitsPerCustomer: sale.maxUnitsPerCustomer,
    gateways: sale.gateways,
    shippingFee: sale.shippingFee,
    language: sale.language,
    ...sale.details,
    opensAt: new Date(v.opensAtMs).toISOString(),
    closesAt: new Date(v.closesAtMs).toISOString(),
    serverTime: new Date(a.nowMs).toISOString(),
    reserving: v.reserving ? "on" : "off",
    paying: a.pausedAtMs > 0 ? "off" : "on",
    epoch: sale.epoch,
    items: rows.map((r) => {
      const item = sale.items.get(r.sku);
      const units = v.items.get(r.sku) ?? { free: 0, live: 0 };
      // Live in Redis less those whose units are already claimed in Postgres; the audit reads more carefully.
      return {
        sku: r.sku,
        name: item?.name,
        unitPrice: item?.unitPrice,
        granted: r.granted,
        free: units.free,
        held: units.live - r.claimed_live,
        claimed: r.claimed,
        sold: r.sold,
      };
    }),
    holds: { held: v.heldHolds, paying: v.payingHolds },
    gates,
    payments: open,
    journal: { length: v.journalLength, oldestMs: oldest ? Math.max(0, a.nowMs - Number(oldest[0].split("-")[0])) : 0 },
    outbox: mails,
  };
}

export type SaleFigures = Awaited<ReturnType<typeof saleFigures>>;

/** Answers a second, of all processes of this node. */
export interface Rates {
  requests: number;
  /** Reservations granted. */
  granted: number;
  /** Reserve answered with a refusal: sold out, held, not open, limit, too many. */
  refused: number;
  /** 503, of any route. */
  shed: number;
  /** Any other 5xx. */
  failed: number;
}

/** One second of the past, small: units as [free, held, in payment, sold] by sale and item. */
export interface Point {
  atMs: number;
  rates: Rates;
  units: Record<string, Array<[number, number, number, number]>>;
}

export type Watched =
  | { event: "history"; data: Point[] }
  | {
      event: "figures";
      data: {
        at: string;
        sales?: SaleFigures[];
        rates?: Rates;
        point?: Point;
        unavailable?: string;
        stopped?: string[];
      };
    }
  | { event: "books"; data: Audit[] };

const RESERVE_ROUTE = "/v1/sales/{saleId}/reservations";
const COUNTED = /^fukubukuro_http_requests_total\{route="([^"]*)",status="(\d+)"\} (\d+)/gm;

/** Counts since the start, from the text of /metrics: the one place where the figures of several processes are added up already. */
function countsOf(text: string): Rates {
  const sum: Rates = { requests: 0, granted: 0, refused: 0, shed: 0, failed: 0 };
  for (const [, route, status, n] of text.matchAll(COUNTED)) {
    const count = Number(n);
    sum.requests += count;
    if (status === "503") sum.shed += count;
    else if (status?.startsWith("5")) sum.failed += count;
    if (route !== RESERVE_ROUTE) continue;
    if (status === "201") sum.granted += count;
    if (status === "403" || status === "409" || status === "429") sum.refused += count;
  }
  return sum;
}

/** What came in between; a count that is lower than before began again with its process. */
function ratesOf(before: Rates, now: Rates, seconds: number): Rates {
  const rate = (name: keyof Rates) =>
    Math.round((now[name] < before[name] ? now[name] : now[name] - before[name]) / seconds);
  return {
    requests: rate("requests"),
    granted: rate("granted"),
    refused: rate("refused"),
    shed: rate("shed"),
    failed: rate("failed"),
  };
}

export type LiveFigures = ReturnType<typeof makeLiveFigures>;

/** Reads while somebody watches, and keeps the last quarter of an hour. */
export function makeLiveFigures(ctx: Context) {
  const heard = new EventEmitter().setMaxListeners(0);
  const points: Point[] = [];
  let watchers = 0;
  let running = false;
  let books: Audit[] = [];
  let booksAt = Number.NEGATIVE_INFINITY;
  let counted: { at: number; counts: Rates } | null = null;
  // Whoever watches hears of the drain by the same way as of everything else.
  ctx.draining.addEventListener("abort", () => heard.emit("watched", null));

  async function rates(): Promise<Rates> {
    const now = { at: performance.now(), counts: countsOf(await ctx.metrics.text()) };
    const before = counted ?? now;
    counted = now;
    return ratesOf(before.counts, now.counts, Math.max(0.001, (now.at - before.at) / 1000));
  }

  const watchedSales = async () => (await ctx.sales.all()).filter((s) => s.closesAtMs > Date.now() - WATCHED_AFTER_MS);

  async function sample(): Promise<void> {
    const watched = await watchedSales();
    const stopped = watched.flatMap((s) => (s.stoppedWhy === null ? [] : [`${s.id}: ${s.stoppedWhy}`]));
    const sales = await Promise.all(watched.filter((s) => s.stoppedWhy === null).map((s) => saleFigures(ctx, s)));
    const unitsOf = (f: SaleFigures) =>
      f.items
        .slice(0, HISTORY_ITEMS_MAX)
        .map((i): [number, number, number, number] => [i.free, i.held, Math.max(0, i.claimed - i.sold), i.sold]);
    const point: Point = {
      atMs: Date.now(),
      rates: await rates(),
      units: Object.fromEntries(sales.map((f) => [f.id, unitsOf(f)])),
    };
    points.push(point);
    if (points.length > POINTS_MAX) points.shift();
    heard.emit("watched", {
      event: "figures",
      data: { at: new Date(point.atMs).toISOString(), sales, rates: point.rates, point, stopped },
    } satisfies Watched);
  }

  async function readBooks(): Promise<void> {
    if (performance.now() - booksAt < BOOKS_MS) return;
    booksAt = performance.now();
    const read: Audit[] = [];
    for (const s of await watchedSales()) read.push(await auditSale(ctx, s.id, s.no, LEDGER_MS));
    books = read;
    heard.emit("watched", { event: "books", data: books } satisfies Watched);
  }

  async function run(): Promise<void> {
    if (running) return;
    running = true;
    counted = null;
    while (watchers > 0 && !ctx.draining.aborted) {
      const began = performance.now();
      const away = (error: Error) =>
        heard.emit("watched", {
          event: "figures",
          data: { at: new Date().toISOString(), unavailable: error.message },
        } satisfies Watched);
      await sample().catch(away);
      void readBooks().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, Math.max(50, SAMPLE_MS - (performance.now() - began))));
    }
    running = false;
  }

  return {
    isFull: () => watchers >= WATCHERS_MAX,
    /** Reads the books again with the next second: something was done to them. */
    booksMoved() {
      booksAt = Number.NEGATIVE_INFINITY;
    },
    /** First the past, then each second, until the signal, the drain, or a reader too slow to follow: who connects again has the past again. */
    async *watch(gone: AbortSignal): AsyncGenerator<Watched> {
      const next: Watched[] = [{ event: "history", data: points }];
      if (books.length > 0) next.push({ event: "books", data: books });
      let wake = () => {};
      let behind = false;
      const hear = (told: Watched | null) => {
        if (next.length >= BEHIND_MAX) behind = true;
        else if (told) next.push(told);
        wake();
      };
      const leave = () => hear(null);
      heard.on("watched", hear);
      gone.addEventListener("abort", leave);
      watchers++;
      try {
        void run();
        while (!gone.aborted && !ctx.draining.aborted && !behind) {
          const first = next.shift();
          if (first) yield first;
          else
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
        }
      } finally {
        watchers--;
        heard.off("watched", hear);
        gone.removeEventListener("abort", leave);
      }
    },
  };
}
