/**
 * What the results are compared with, with the same server options and the same answer headers: bare JSON answers of
 * Hono and of node's own server, and the reserves that a shop would write first: one script call per request, and a row
 * lock in Postgres.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { Redis } from "ioredis";
import { nanoid } from "nanoid";
import postgres from "postgres";

const SERVER = {
  headersTimeout: 5_000,
  requestTimeout: 10_000,
  connectionsCheckingInterval: 500,
  keepAliveTimeout: 10_000,
  maxHeaderSize: 8_192,
};
const HEADERS = {
  "content-type": "application/json",
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
};
const LOCATION = "/v1/reservations/rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF";
const now = new Date().toISOString();
const HELD = {
  id: "rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF",
  saleId: "bench",
  status: "held",
  amount: 10800,
  currency: "JPY",
  expiresAt: now,
  serverTime: now,
};
const SALE = {
  id: "bench-xxxxxxxx",
  name: "Bench",
  status: "open",
  opensAt: now,
  closesAt: now,
  serverTime: now,
  currency: "JPY",
  holdMs: 3_600_000,
  maxUnitsPerCustomer: 100,
  gateways: ["cod"],
  shippingFee: 0,
  nextReleaseAt: null,
  items: [{ sku: "bag", name: "Bag", unitPrice: 10_000, availability: "available", free: 10_000_000 }],
};
let n = 0;
const requestId = () => `f-${++n}`;
type Lines = { lines: Array<{ sku: string; quantity: number }> };

/** One script call for each request: what coalescing is measured against. */
const RESERVE = `local free = tonumber(redis.call('HGET', KEYS[1], ARGV[1])) if free < tonumber(ARGV[2]) then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[1], -ARGV[2]) redis.call('HSET', KEYS[2], ARGV[3], ARGV[1] .. ':' .. ARGV[2]) return 1`;

async function hono(): Promise<void> {
  const app = new Hono();
  app.post("/echo", async (c) => {
    const body = (await c.req.json()) as Lines;
    return c.body(JSON.stringify({ ...HELD, lines: body.lines }), 201, {
      ...HEADERS,
      location: LOCATION,
      "x-request-id": requestId(),
    });
  });
  app.get("/sale", (c) =>
    c.body(JSON.stringify(SALE), 200, {
      ...HEADERS,
      "cache-control": "public, max-age=1",
      etag: '"x"',
      "x-request-id": requestId(),
    }),
  );
  if (process.env.FLOOR_REDIS_URL) {
    const redis = new Redis(process.env.FLOOR_REDIS_URL, { enableAutoPipelining: false });
    redis.defineCommand("bench_reserve", { numberOfKeys: 2, lua: RESERVE });
    await redis.hset("bench:{floor}:free", "bag", 100_000_000);
    const call = redis as unknown as { bench_reserve(...args: Array<string | number>): Promise<number> };
    app.post("/evalsha", async (c) => {
      const { lines } = (await c.req.json()) as Lines;
      const [line] = lines as [Lines["lines"][0]];
      await call.bench_reserve(
        "bench:{floor}:free",
        "bench:{floor}:holds",
        line.sku,
        line.quantity,
        c.req.header("idempotency-key") ?? "",
      );
      return c.body(JSON.stringify({ ...HELD, lines }), 201, {
        ...HEADERS,
        location: LOCATION,
        "x-request-id": requestId(),
      });
    });
  }
  if (process.env.FLOOR_DATABASE_URL) {
    const sql = postgres(process.env.FLOOR_DATABASE_URL, { max: 20, onnotice: () => {} });
    await sql`drop schema if exists bench_floor cascade`;
    await sql`create schema bench_floor`;
    await sql`create table bench_floor.stock (sku text primary key, free int not null check (free >= 0))`;
    await sql`create table bench_floor.holds (id text primary key, sku text not null, quantity int not null,
      customer text not null, expires_at timestamptz not null)`;
    await sql`insert into bench_floor.stock values ('bag', 100000000)`;
    app.post("/row-lock", async (c) => {
      const { lines } = (await c.req.json()) as Lines;
      const [line] = lines as [Lines["lines"][0]];
      const held = await sql.begin(async (tx) => {
        const changed = await tx`update bench_floor.stock set free = free - ${line.quantity}
            where sku = ${line.sku} and free >= ${line.quantity}`;
        if (changed.count === 0) return false;
        await tx`insert into bench_floor.holds
          values (${nanoid()}, ${line.sku}, ${line.quantity}, 'c', now() + interval '10 minutes')`;
        return true;
      });
      return c.body(JSON.stringify({ ...HELD, lines }), held ? 201 : 409, {
        ...HEADERS,
        location: LOCATION,
        "x-request-id": requestId(),
      });
    });
  }
  serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1", serverOptions: SERVER }, (info) =>
    console.log(`http://127.0.0.1:${info.port}`),
  );
}

function node(): void {
  const server = createServer(SERVER, (incoming: IncomingMessage, outgoing: ServerResponse) => {
    const chunks: Buffer[] = [];
    incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
    incoming.on("end", () => {
      const { lines } = JSON.parse(Buffer.concat(chunks).toString("utf8")) as Lines;
      const body = JSON.stringify({ ...HELD, lines });
      outgoing.writeHead(201, {
        ...HEADERS,
        location: LOCATION,
        "x-request-id": requestId(),
        "content-length": Buffer.byteLength(body),
      });
      outgoing.end(body);
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`));
}

process.on("SIGTERM", () => process.exit(0));
if (process.argv[2] === "node") node();
else await hono();
