/**
 * What the figures stand beside, on the same server options and with the same answer headers: a bare JSON echo of Hono, and
 * the reserve that a shop would write first, a row lock in Postgres. A process of its own, like the service.
 */

import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { nanoid } from "nanoid";
import postgres from "postgres";

const HEADERS = {
  "content-type": "application/json",
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
  location: "/v1/reservations/rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF",
};
const ANSWER = {
  id: "rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF",
  saleId: "bench",
  status: "held",
  amount: 10800,
  currency: "JPY",
  expiresAt: new Date().toISOString(),
  serverTime: new Date().toISOString(),
};

const [, , port = "0", databaseUrl = ""] = process.argv;
const app = new Hono();
let n = 0;
app.post("/echo", async (c) => {
  const body = await c.req.json();
  return c.body(JSON.stringify({ ...ANSWER, lines: body.lines }), 201, { ...HEADERS, "x-request-id": `f-${++n}` });
});

if (databaseUrl) {
  const sql = postgres(databaseUrl, { max: 20, onnotice: () => {} });
  await sql`drop schema if exists bench_floor cascade`;
  await sql`create schema bench_floor`;
  await sql`create table bench_floor.stock (sku text primary key, free int not null check (free >= 0))`;
  await sql`create table bench_floor.holds (id text primary key, sku text not null, quantity int not null, customer text not null, expires_at timestamptz not null)`;
  await sql`insert into bench_floor.stock values ('bag', 100000000)`;
  app.post("/row-lock", async (c) => {
    const { lines } = (await c.req.json()) as { lines: Array<{ sku: string; quantity: number }> };
    const [line] = lines as [{ sku: string; quantity: number }];
    const held = await sql.begin(async (tx) => {
      const changed = await tx`update bench_floor.stock set free = free - ${line.quantity} where sku = ${line.sku} and free >= ${line.quantity}`;
      if (changed.count === 0) return false;
      await tx`insert into bench_floor.holds values (${nanoid()}, ${line.sku}, ${line.quantity}, 'c', now() + interval '10 minutes')`;
      return true;
    });
    return c.body(JSON.stringify({ ...ANSWER, lines }), held ? 201 : 409, { ...HEADERS, "x-request-id": `f-${++n}` });
  });
}

const server = serve(
  {
    fetch: app.fetch,
    port: Number(port),
    hostname: "127.0.0.1",
    serverOptions: { headersTimeout: 5_000, requestTimeout: 10_000, connectionsCheckingInterval: 500, keepAliveTimeout: 10_000, maxHeaderSize: 8_192 },
  },
  (info) => console.log(`http://127.0.0.1:${info.port}`),
);
process.on("SIGTERM", () => server.close());
