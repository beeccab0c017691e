/**
 * What operators watch, as server-sent events: figures of the sales, requests of this node, the books; read once a
 * second however many watch.
 */
import { EventEmitter } from "node:events";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import type { Sale } from "../domain/sale.ts";
import { type Audit, auditSale } from "../recover/audit.ts";
import { liveEventView } from "./admin-contract.ts";
import type { OperatorDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import { Problem } from "./problem.ts";
import { makeRequestRates, type Rates } from "./request-rates.ts";
import type { RouteSpec } from "./route-spec.ts";
import { type SaleFigures, saleFigures } from "./sale-figures.ts";

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

const WATCH: RouteSpec = {
  method: "get",
  path: "/v1/admin/events",
  operationId: "watchSales",
  summary: "Figures of all sales that have not been over for a week as server-sent events, once a second",
  description:
    "For a cockpit: read once a second however many watch, at most 50 a process. A reader too slow to follow is let go, and has the past again when it comes back.",
  tag: "Operator",
  who: "admin",
  answers: {
    200: {
      description:
        "`event: figures` once a second; before the first `event: history`, the last quarter of an hour; `event: books`, the audits, now and then",
      content: { schema: liveEventView, example: examples.live },
      type: "text/event-stream",
    },
  },
};

export function liveRoute(door: OperatorDoor, liveFigures: LiveFigures): void {
  door.routes.route(WATCH, (c) => watch(door, liveFigures, c));
}

function watch(door: OperatorDoor, liveFigures: LiveFigures, c: Http): Response {
  door.check(c);
  if (liveFigures.isFull()) throw new Problem("OVERLOADED", "too many watch already");
  return door.routes.events(c, async (stream, gone) => {
    for await (const { event, data } of liveFigures.watch(gone)) {
      await stream.writeSSE({ event, data: JSON.stringify(data) });
    }
  });
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

function pointOf(rates: Rates, sales: SaleFigures[]): Point {
  const unitsOf = (f: SaleFigures) =>
    f.items
      .slice(0, HISTORY_ITEMS_MAX)
      .map((i): [number, number, number, number] => [i.free, i.held, Math.max(0, i.claimed - i.sold), i.sold]);
  return { atMs: Date.now(), rates, units: Object.fromEntries(sales.map((f) => [f.id, unitsOf(f)])) };
}

async function watchedSales(ctx: Pick<Context, "sales">): Promise<Sale[]> {
  return (await ctx.sales.all()).filter((s) => s.closesAtMs > Date.now() - WATCHED_AFTER_MS);
}

export type LiveFigures = ReturnType<typeof makeLiveFigures>;

/** Reads while somebody watches, and keeps the last quarter of an hour. */
export function makeLiveFigures(ctx: Context) {
  const heard = new EventEmitter().setMaxListeners(0);
  const requestRates = makeRequestRates(ctx.metrics);
  const points: Point[] = [];
  let watchers = 0;
  let running = false;
  let books: Audit[] = [];
  let booksAt = Number.NEGATIVE_INFINITY;
  const tell = (watched: Watched) => heard.emit("watched", watched);
  // Whoever watches hears of the drain by the same way as of everything else.
  ctx.draining.addEventListener("abort", () => heard.emit("watched", null));

  async function sample(): Promise<void> {
    const watched = await watchedSales(ctx);
    const stopped = watched.flatMap((s) => (s.stoppedWhy === null ? [] : [`${s.id}: ${s.stoppedWhy}`]));
    const sales = await Promise.all(watched.filter((s) => s.stoppedWhy === null).map((s) => saleFigures(ctx, s)));
    const point = pointOf(await requestRates.read(), sales);
    points.push(point);
    if (points.length > POINTS_MAX) points.shift();
    const at = new Date(point.atMs).toISOString();
    tell({ event: "figures", data: { at, sales, rates: point.rates, point, stopped } });
  }

  async function readBooks(): Promise<void> {
    if (performance.now() - booksAt < BOOKS_MS) return;
    booksAt = performance.now();
    const read: Audit[] = [];
    for (const s of await watchedSales(ctx)) read.push(await auditSale(ctx, s.id, s.no, LEDGER_MS));
    books = read;
    tell({ event: "books", data: books });
  }

  async function run(): Promise<void> {
    if (running) return;
    running = true;
    requestRates.beginAnew();
    while (watchers > 0 && !ctx.draining.aborted) {
      const began = performance.now();
      await sample().catch((error: Error) =>
        tell({ event: "figures", data: { at: new Date().toISOString(), unavailable: error.message } }),
      );
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
    /**
     * First the past, then each second, until the signal, the drain, or a reader too slow to follow: who connects again
     * has the past again.
     */
    async *watch(gone: AbortSignal): AsyncGenerator<Watched> {
      const past: Watched[] = [{ event: "history", data: points }];
      if (books.length > 0) past.push({ event: "books", data: books });
      watchers++;
      try {
        void run();
        yield* heardOf(heard, past, gone, ctx.draining);
      } finally {
        watchers--;
      }
    },
  };
}

/** What one reader is told: what is there already, then what is heard, until there is nobody to tell it to. */
async function* heardOf(
  heard: EventEmitter,
  next: Watched[],
  gone: AbortSignal,
  draining: AbortSignal,
): AsyncGenerator<Watched> {
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
  try {
    while (!gone.aborted && !draining.aborted && !behind) {
      const first = next.shift();
      if (first) yield first;
      else
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
    }
  } finally {
    heard.off("watched", hear);
    gone.removeEventListener("abort", leave);
  }
}
