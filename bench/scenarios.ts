/** The scenarios over HTTP. Each checks every answer, and where units moved the books. */
import { type Line, makeClient } from "../src/client/index.ts";
import { randomOf } from "../src/local/random.ts";
import { expectStatuses, load, type Measured, type Request, sent, Wrong } from "./load.ts";
import type { Operator, Target } from "./target.ts";

export interface Options {
  requests: number;
  connections: number;
  rate: number;
  orders: number;
}

export interface World {
  target: Target;
  op: Operator;
  floor: string;
  nodeFloor: string;
  tokens: string[];
  o: Options;
  note(name: string, f: Measured): void;
}

const LINES = JSON.stringify({ lines: [{ sku: "bag", quantity: 1 }] });
const REPLAYS = 20;
const json = { "content-type": "application/json" };

/** One customer a request, with a token never seen before in this scenario. */
export const post =
  (w: World, path: string, key: string) =>
  (i: number): Request => ({
    method: "POST",
    path,
    headers: { ...json, authorization: `Bearer ${w.tokens[i % w.tokens.length]}`, "idempotency-key": `${key}-${i}` },
    body: LINES,
  });
/**
 * Shoppers of the scenario who press once more, through the client: each finds the bag that was granted, and takes no
 * second one.
 */
async function checkReplays(w: World, saleId: string, key: string, requests: number): Promise<void> {
  const random = randomOf(0, `replays of ${key}`);
  for (let n = 0; n < REPLAYS; n++) {
    const i = Math.floor(random() * requests);
    const client = makeClient({ baseUrl: w.target.url, token: w.tokens[i % w.tokens.length] as string });
    const again = await client.reserve(saleId, {
      ...(JSON.parse(LINES) as { lines: Line[] }),
      idempotencyKey: `${key}-${i}`,
    });
    if (!again.replayed || again.status !== "held")
      throw new Wrong(`request ${i} of ${saleId} was granted, and repeated it is ${JSON.stringify(again)}`);
  }
}

const reservations = (saleId: string) => `/v1/sales/${saleId}/reservations`;

/** Everything that is compared with a floor, one after the other, so that floor and figure meet the same machine. */
export async function round(w: World, n: number): Promise<void> {
  const { op, o, floor, target } = w;
  const many = { amount: o.requests, connections: o.connections };
  const all = sent(o.requests, o.connections);

  const echo = await load(floor, many, post(w, "/echo", "e"));
  expectStatuses("echo", echo, { 201: all });
  w.note("Hono echo, POST (floor)", echo);

  const saleId = await op.makeSale(10_000_000);
  const reserve = await load(target.url, many, post(w, reservations(saleId), `r${n}`));
  expectStatuses("reserve", reserve, { 201: all });
  w.note("reserve", reserve);
  await checkReplays(w, saleId, `r${n}`, all);
  await op.checkBooks(saleId, { held: all });

  const none = await op.makeSale(0);
  const soldOut = await load(target.url, many, post(w, reservations(none), `s${n}`));
  expectStatuses("sold out", soldOut, { 409: all });
  w.note("refused: sold out", soldOut);

  const later = await op.makeSale(100, { opensAt: new Date(Date.now() + 3_600_000).toISOString() });
  const early = await load(target.url, many, post(w, reservations(later), `n${n}`));
  expectStatuses("not open", early, { 403: all });
  w.note("refused: not open yet", early);

  const few = Math.max(1, Math.floor(all / 1000));
  const rare = await op.makeSale(few);
  const mixed = await load(target.url, many, post(w, reservations(rare), `m${n}`));
  expectStatuses("a thousand for each bag", mixed, { 201: few, 409: all - few });
  w.note("a thousand shoppers a bag", mixed);
  await op.checkBooks(rare, { held: few });

  const get = (path: string) => (): Request => ({ method: "GET", path });
  w.note("Hono answer, GET (floor)", await load(floor, many, get("/sale")));
  const sale = await load(target.url, many, get(`/v1/sales/${none}`));
  expectStatuses("sale", sale, { 200: all });
  w.note("GET sale", sale);

  w.note("node:http echo, POST (floor)", await load(w.nodeFloor, many, post(w, "/echo", "e")));
  if (!target.stores) return;
  const fewer = { ...many, amount: Math.max(o.connections, Math.floor(o.requests / 3)) };
  w.note("one EVALSHA a request (floor)", await load(floor, fewer, post(w, "/evalsha", `v${n}`)));
  const fewest = { ...many, amount: Math.max(o.connections, Math.floor(o.requests / 20)) };
  const rowLock = await load(floor, fewest, post(w, "/row-lock", "p"));
  expectStatuses("Postgres row lock", rowLock, { 201: sent(fewest.amount, o.connections) });
  w.note("Postgres row lock (floor)", rowLock);
}

/** Latency at a rate that both can hold. */
export async function heldRate(w: World): Promise<void> {
  const held = { amount: Math.min(w.o.requests, w.o.rate * 5), connections: w.o.connections, rate: w.o.rate };
  w.note(`echo held at ${w.o.rate}/s (floor)`, await load(w.floor, held, post(w, "/echo", "e")));
  const saleId = await w.op.makeSale(10_000_000);
  const atRate = await load(w.target.url, held, post(w, reservations(saleId), "h"));
  expectStatuses("reserve at a held rate", atRate, { 201: sent(held.amount, held.connections) });
  w.note(`reserve held at ${w.o.rate}/s`, atRate);
}

export interface Opening {
  stock: number;
  beforePerSecond: number;
  firstSecondPerSecond: number;
  firstGrantMs: number;
  soldOutMs: number | null;
  timeline: Array<Record<string, number>>;
}

/** Building so many requests takes the generator this long before it sends the first. */
const BUILD_MS_PER_REQUEST = 0.03;
const OPENING_TRIES = 4;

/**
 * The clock runs to the opening while everyone presses; then the first second. `perSecond`: what the storm before it is
 * expected to reach.
 */
export async function opening(w: World, perSecond: number): Promise<Opening> {
  const stock = 300;
  const amount = w.o.requests;
  let opensInMs = amount * BUILD_MS_PER_REQUEST + (amount / perSecond) * 400;
  for (let n = 1; ; n++) {
    const opensAt = Date.now() + opensInMs;
    const saleId = await w.op.makeSale(stock, { opensAt: new Date(opensAt).toISOString() });
    const f = await load(
      w.target.url,
      { amount, connections: w.o.connections, timeline: true },
      post(w, reservations(saleId), `o${n}`),
    );
    const { 403: early = 0, 201: granted = 0, 409: refused = 0, ...other } = f.statuses as Record<number, number>;
    if (Object.keys(other).length > 0 || granted > stock)
      throw new Wrong(`opening: ${JSON.stringify(f.statuses)} for a stock of ${stock}`);
    const timeline = f.timeline ?? [];
    const openTenth = (opensAt - f.firstAtMs) / 100;
    // The storm has to begin before the opening and to outlive its first second; else once more, better aimed.
    if (early === 0 || openTenth + 11 > timeline.length) {
      if (n === OPENING_TRIES)
        throw new Error(`the storm of ${amount} requests does not span the opening: use more --requests`);
      opensInMs += (timeline.length * 40 - openTenth * 100) | 0;
      continue;
    }
    if (granted !== stock) throw new Wrong(`opening: ${granted} of ${stock} granted`);
    const first = timeline.findIndex((t) => (t[201] ?? 0) > 0);
    if (first + 1 < openTenth)
      throw new Wrong(`opening: granted in tenth ${first}, the sale opened in tenth ${openTenth.toFixed(1)}`);
    await w.op.checkBooks(saleId, { held: stock });
    w.note("the opening, storm and first second", f);
    const sum = (from: number, to: number) =>
      timeline.slice(Math.floor(from), Math.floor(to)).reduce((all, t) => all + total(t), 0);
    const last = timeline.findLastIndex((t) => (t[201] ?? 0) > 0);
    return {
      stock,
      beforePerSecond: sum(0, openTenth) / (openTenth / 10),
      firstSecondPerSecond: sum(openTenth, openTenth + 10),
      firstGrantMs: Math.max(0, Math.round((first - openTenth) * 100)),
      soldOutMs: refused > 0 ? Math.round((last + 1 - openTenth) * 100) : null,
      timeline,
    };
  }
}
const total = (t: Record<string, number>) => Object.values(t).reduce((a, b) => a + b, 0);

export interface Checkout {
  gateway: string;
  orders: number;
  perSecond: number;
  lagP50Ms: number;
  lagP99Ms: number;
}

/**
 * Whole orders: reserved and confirmed over HTTP by many at once, recorded in Postgres; from the first reserve to the
 * last record by the service's own clock, since the generator ends on a full second only.
 */
export async function checkout(w: World, gateway: "cod" | "sandbox", orders: number): Promise<Checkout> {
  const { target, op, o } = w;
  const saleId = await op.makeSale(orders, { gateways: [gateway] });
  const payment = gateway === "cod" ? { gateway } : { gateway, token: "tok_ok" };
  const contact = { email: "bench@example.invalid", name: "Bench" };
  const body = JSON.stringify({ payment, contact });
  const connections = Math.min(o.connections, orders);
  const amount = sent(orders, connections);
  const began = performance.now();
  let firstAt = "";
  // The second half of a shopper's way needs the id that the first half was given.
  const f = await load(target.url, { amount: amount * 2, connections }, (i) => [
    {
      ...post(w, reservations(saleId), "c")(i),
      onResponse: (_, text, context) => {
        const held = JSON.parse(text) as { id: string; serverTime: string };
        context.id = held.id;
        firstAt ||= held.serverTime;
      },
    },
    {
      method: "POST",
      path: "/",
      headers: { ...json, authorization: `Bearer ${w.tokens[i]}` },
      body,
      setupRequest: (r, context) => ({ ...r, path: `/v1/reservations/${context.id}/pay` }),
    },
  ]);
  w.note(`reserve and confirm, ${gateway}`, f);
  expectStatuses(`checkout by ${gateway}`, f, { 201: amount, 202: amount });
  for (let recorded = 0; recorded < amount; ) {
    recorded = (await op.call<{ items: Array<{ sold: number }> }>("GET", `/sales/${saleId}`)).items[0]?.sold ?? 0;
    if (performance.now() - began > 180_000)
      throw new Wrong(`only ${recorded} of ${amount} orders were recorded in three minutes`);
    if (recorded < amount) await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await op.checkBooks(saleId, { sold: amount, held: 0 });
  const times = await timesOf(op, saleId);
  const ms = Math.max(...times.map((t) => t.recordedAt)) - Date.parse(firstAt);
  const lags = times.map((t) => t.recordedAt - t.confirmedAt).sort((a, b) => a - b);
  const at = (q: number) => lags[Math.floor(lags.length * q)] ?? 0;
  return { gateway, orders: amount, perSecond: amount / (ms / 1000), lagP50Ms: at(0.5), lagP99Ms: at(0.99) };
}

async function timesOf(op: Operator, saleId: string): Promise<Array<{ confirmedAt: number; recordedAt: number }>> {
  const times: Array<{ confirmedAt: number; recordedAt: number }> = [];
  for (let cursor: string | null = ""; cursor !== null; ) {
    const page: { orders: Array<{ confirmedAt: string; recordedAt: string }>; nextCursor: string | null } =
      await op.call("GET", `/orders?saleId=${saleId}&limit=200${cursor && `&cursor=${cursor}`}`);
    times.push(
      ...page.orders.map((x) => ({ confirmedAt: Date.parse(x.confirmedAt), recordedAt: Date.parse(x.recordedAt) })),
    );
    cursor = page.nextCursor;
  }
  return times;
}
