/** The judge of every performance claim: held-rate and saturating load, floors in the same run, correctness in the same run. `npm run bench -- --help` */

import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { cpus, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import autocannon from "autocannon";
import { Command, InvalidArgumentError } from "commander";
import { nanoid } from "nanoid";
import { signShopperToken } from "../src/auth.ts";
import { freePort, startGuarded } from "../src/local/processes.ts";
import type { Audit } from "../src/recover/audit.ts";

const number = (text: string) => {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("a whole number");
  return Number(text);
};
const program = new Command("bench")
  .description("Runs a sale under load and prints its figures beside their floors. Without --url a private stack is started and stopped again.")
  .option("--url <url>", "a running service instead of a private stack; needs --secret and --admin")
  .option("--secret <secret>", "its SHOPPER_TOKEN_SECRET")
  .option("--admin <token>", "its ADMIN_TOKEN")
  .option("--rounds <n>", "rounds, of which the medians are printed", number, 3)
  .option("--requests <n>", "requests a round and scenario", number, 60_000)
  .option("--connections <n>", "connections of the load generator: a rush has many", number, 256)
  .option("--orders <n>", "orders of the checkout scenario", number, 3_000)
  .option("--rate <n>", "held rate of the latency scenario, requests per second", number, 2_000)
  .parse();
const o = program.opts<{
  url?: string;
  secret?: string;
  admin?: string;
  rounds: number;
  requests: number;
  connections: number;
  orders: number;
  rate: number;
}>();

interface Target {
  url: string;
  secret: string;
  admin: string;
  /** For the Postgres floor; absent for a service elsewhere. */
  databaseUrl?: string;
}
const stops: Array<() => Promise<unknown>> = [];
const say = (line: string) => process.stderr.write(`${line}\n`);

async function privateStack(): Promise<Target> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-bench-"));
  stops.push(() => rm(folder, { recursive: true, force: true }));
  let ready: (out: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    ready = resolve;
  });
  let out = "";
  const service = startGuarded(
    "bench",
    [process.execPath, "--max-semi-space-size=64", fileURLToPath(new URL("../src/fukubukuro.mjs", import.meta.url)), "serve"],
    {
      signal: "TERM",
      env: { DATA_DIR: folder, PORT: String(await freePort()), CUSTOMER_RATE_PER_S: "100000", REDIS_URL: "", DATABASE_URL: "", GATEWAY_LINE_MAX: "100000" },
      onLine: (line) => {
        out += `${line}\n`;
        if (line.startsWith("Data is kept")) ready(out);
      },
    },
  );
  stops.push(service.stop);
  const text = await Promise.race([told, service.endedEarly]);
  const read = async (file: string) => JSON.parse(await readFile(join(folder, file), "utf8")) as Record<string, string>;
  return {
    url: /Start page\s+(\S+?)\/\n/.exec(text)?.[1] as string,
    admin: /Admin token\s+(\S+)/.exec(text)?.[1] as string,
    secret: (await read("secrets.json")).shopperTokenSecret as string,
    databaseUrl: (await read("running.json")).databaseUrl as string,
  };
}

async function startFloor(databaseUrl: string | undefined): Promise<string> {
  let tell: (url: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;
  const command = [process.execPath, "--import", tsx, fileURLToPath(new URL("./floor.ts", import.meta.url)), "0", ...(databaseUrl ? [databaseUrl] : [])];
  const floor = startGuarded("floor", command, { signal: "TERM", onLine: tell });
  stops.push(floor.stop);
  return Promise.race([told, floor.endedEarly]);
}

/** Tokens are made once, before any load: one customer a request, as in a rush. */
function makeTokens(secret: string, n: number): string[] {
  return Array.from({ length: n }, (_, i) => signShopperToken(secret, `bench-${i}`, 6 * 3_600_000));
}

interface Figures {
  perSecond: number;
  p50: number;
  p99: number;
  statuses: Record<string, number>;
}

/** Sends exactly `amount` requests, each of them once, at full speed or at a held rate. */
async function load(
  url: string,
  amount: number,
  request: (i: number) => { method: "GET" | "POST"; path: string; headers?: Record<string, string>; body?: string },
  rate?: number,
): Promise<Figures> {
  const connections = Math.min(o.connections, amount);
  const perConnection = Math.floor(amount / connections);
  let connection = 0;
  // The generator first builds every request and ends on a full second; the clock runs from the first answer to the last.
  let [firstAt, lastAt] = [0, 0];
  const result = await autocannon({
    url,
    connections,
    amount: perConnection * connections,
    timeout: 30,
    ...(rate && { overallRate: rate }),
    setupClient(client) {
      const from = connection++ * perConnection;
      client.setRequests(Array.from({ length: perConnection }, (_, i) => request(from + i)) as autocannon.Request[]);
      client.on("response", () => {
        lastAt = performance.now();
        firstAt ||= lastAt;
      });
    },
  });
  const seconds = (lastAt - firstAt) / 1000;
  const statuses = Object.fromEntries(Object.entries(result.statusCodeStats ?? {}).map(([status, s]) => [status, (s as { count: number }).count]));
  return { perSecond: (perConnection * connections) / seconds, p50: result.latency.p50, p99: result.latency.p99, statuses };
}

class Wrong extends Error {}
function expectStatuses(what: string, f: Figures, wanted: Record<string, number>) {
  const [got, want] = [JSON.stringify(f.statuses), JSON.stringify(wanted)];
  if (got !== want) throw new Wrong(`${what}: answers were ${got}, expected ${want}`);
}

if (!o.url) say("Starting a private stack ...");
const target: Target = o.url ? { url: o.url, secret: o.secret ?? "", admin: o.admin ?? "" } : await privateStack();
if (!target.secret || !target.admin) program.error("--url needs --secret and --admin");

async function admin<T>(method: string, path: string, body?: unknown): Promise<T> {
  const r = await fetch(`${target.url}/v1/admin${path}`, {
    method,
    headers: { authorization: `Bearer ${target.admin}`, "content-type": "application/json" },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  if (!r.ok) throw new Error(`${method} ${path}: ${r.status} ${await r.text()}`);
  return (await r.json()) as T;
}

async function makeSale(stock: number): Promise<string> {
  const now = Date.now();
  const id = `bench-${nanoid(8).replace(/[^A-Za-z0-9]/g, "x")}`;
  await admin("POST", "/sales", {
    ...{ id, name: "Bench", currency: "JPY", holdMs: 3_600_000, maxUnitsPerCustomer: 100, gateways: ["cod"] },
    ...{
      opensAt: new Date(now - 60_000).toISOString(),
      closesAt: new Date(now + 86_400_000).toISOString(),
      items: [{ sku: "bag", name: "Bag", unitPrice: 10_000, stock }],
    },
  });
  return id;
}

/** The books after a scenario: nothing oversold, every unit where it should be. */
async function checkBooks(saleId: string, expected: { held?: number; sold?: number }): Promise<void> {
  const until = Date.now() + 60_000;
  for (;;) {
    const a = await admin<Audit>("GET", `/sales/${saleId}/audit`);
    const [item] = a.items;
    const settled = a.open.journalLag === 0 && a.open.paying === 0;
    if (a.ok && settled && item && (expected.held ?? item.held) === item.held && (expected.sold ?? item.sold) === item.sold) return;
    if (Date.now() > until) throw new Wrong(`the books of ${saleId} do not balance: ${JSON.stringify(a)}`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

const LINES = JSON.stringify({ lines: [{ sku: "bag", quantity: 1 }] });
const json = { "content-type": "application/json" };
const median = (numbers: number[]) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] as number;

const rows = new Map<string, Figures[]>();
function note(name: string, f: Figures) {
  rows.set(name, [...(rows.get(name) ?? []), f]);
  say(`  ${name.padEnd(34)} ${Math.round(f.perSecond).toLocaleString("en").padStart(8)}/s   p50 ${f.p50} ms   p99 ${f.p99} ms`);
}

async function round(floor: string, tokens: string[], n: number): Promise<void> {
  say(`Round ${n} of ${o.rounds}`);
  const post = (path: string, i: number, key: string) => ({
    method: "POST" as const,
    path,
    headers: { ...json, authorization: `Bearer ${tokens[i % tokens.length]}`, "idempotency-key": `${key}-${i}` },
    body: LINES,
  });
  const sent = (amount: number) => Math.floor(amount / Math.min(o.connections, amount)) * Math.min(o.connections, amount);

  const echo = await load(floor, o.requests, (i) => post("/echo", i, "e"));
  expectStatuses("echo", echo, { 201: sent(o.requests) });
  note("Hono JSON echo (floor)", echo);

  const saleId = await makeSale(10_000_000);
  const path = `/v1/sales/${saleId}/reservations`;
  const reserve = await load(target.url, o.requests, (i) => post(path, i, `r${n}`));
  expectStatuses("reserve", reserve, { 201: sent(o.requests) });
  note("reserve", reserve);
  await checkBooks(saleId, { held: sent(o.requests) });

  const heldAmount = Math.min(o.requests, o.rate * 5);
  const atRate = await load(target.url, heldAmount, (i) => post(path, i, `h${n}`), o.rate);
  expectStatuses("reserve at a held rate", atRate, { 201: sent(heldAmount) });
  note(`reserve, held at ${o.rate}/s`, atRate);
  note(`echo, held at ${o.rate}/s (floor)`, await load(floor, heldAmount, (i) => post("/echo", i, "e"), o.rate));

  const none = await makeSale(0);
  const soldOut = await load(target.url, o.requests, (i) => post(`/v1/sales/${none}/reservations`, i, `s${n}`));
  expectStatuses("sold out", soldOut, { 409: sent(o.requests) });
  note("refused: sold out", soldOut);

  if (target.databaseUrl) {
    const amount = Math.max(o.connections, Math.floor(o.requests / 20));
    const rowLock = await load(floor, amount, (i) => post("/row-lock", i, "p"));
    expectStatuses("Postgres row lock", rowLock, { 201: sent(amount) });
    note("Postgres row-lock reserve (floor)", rowLock);
  }
}

/** Whole orders by cash on delivery: reserved, confirmed at once by many, recorded in Postgres. */
async function checkout(tokens: string[]): Promise<{ perSecond: number; lagP50Ms: number; lagP99Ms: number; orders: number }> {
  const saleId = await makeSale(o.orders);
  const ids: string[] = [];
  for (let from = 0; from < o.orders; from += 200) {
    const some = Array.from({ length: Math.min(200, o.orders - from) }, (_, i) => from + i);
    const made = await Promise.all(
      some.map(async (i) => {
        const r = await fetch(`${target.url}/v1/sales/${saleId}/reservations`, {
          method: "POST",
          headers: { ...json, authorization: `Bearer ${tokens[i]}`, "idempotency-key": "c" },
          body: LINES,
        });
        return ((await r.json()) as { id: string }).id;
      }),
    );
    ids.push(...made);
  }
  const body = JSON.stringify({ payment: { gateway: "cod" }, contact: { email: "bench@example.invalid", name: "Bench" } });
  const began = performance.now();
  const confirm = await load(target.url, o.orders, (i) => ({
    method: "POST",
    path: `/v1/reservations/${ids[i]}/confirm`,
    headers: { ...json, authorization: `Bearer ${tokens[i]}` },
    body,
  }));
  note("confirm (202, cash on delivery)", confirm);
  const amount = Object.values(confirm.statuses).reduce((a, b) => a + b, 0);
  let recorded = 0;
  while (recorded < amount) {
    const sale = await admin<{ items: Array<{ sold: number }> }>("GET", `/sales/${saleId}`);
    recorded = sale.items[0]?.sold ?? 0;
    if (performance.now() - began > 120_000) throw new Wrong(`only ${recorded} of ${amount} orders were recorded in two minutes`);
    if (recorded < amount) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const seconds = (performance.now() - began) / 1000;
  await checkBooks(saleId, { sold: amount, held: o.orders - amount });
  const lags: number[] = [];
  let cursor: string | null = "";
  while (cursor !== null) {
    const page: { orders: Array<{ confirmedAt: string; recordedAt: string }>; nextCursor: string | null } = await admin(
      "GET",
      `/orders?saleId=${saleId}&limit=200${cursor && `&cursor=${cursor}`}`,
    );
    lags.push(...page.orders.map((x) => Date.parse(x.recordedAt) - Date.parse(x.confirmedAt)));
    cursor = page.nextCursor;
  }
  lags.sort((a, b) => a - b);
  return { perSecond: amount / seconds, lagP50Ms: lags[Math.floor(lags.length / 2)] ?? 0, lagP99Ms: lags[Math.floor(lags.length * 0.99)] ?? 0, orders: amount };
}

function version(command: string, args: string[]): string {
  try {
    return execFileSync(command, args, { encoding: "utf8" }).trim().split("\n")[0] ?? "?";
  } catch {
    return "?";
  }
}

try {
  const floor = await startFloor(target.databaseUrl);
  say("Making tokens ...");
  const tokens = makeTokens(target.secret, Math.max(o.requests, o.orders));
  // Both sides warm: the first thousands of requests are compiled while they run.
  await load(floor, 5_000, (i) => ({ method: "POST", path: "/echo", headers: json, body: LINES, i }) as never);
  const warm = await makeSale(1_000_000);
  await load(target.url, 5_000, (i) => ({
    method: "POST",
    path: `/v1/sales/${warm}/reservations`,
    headers: { ...json, authorization: `Bearer ${tokens[i]}`, "idempotency-key": `w${i}` },
    body: LINES,
  }));
  for (let n = 1; n <= o.rounds; n++) await round(floor, tokens, n);
  const whole = await checkout(tokens);

  const at = (name: string) => {
    const all = rows.get(name) ?? [];
    return { perSecond: median(all.map((f) => f.perSecond)), p50: median(all.map((f) => f.p50)), p99: median(all.map((f) => f.p99)) };
  };
  const echo = at("Hono JSON echo (floor)");
  const rowLock = rows.has("Postgres row-lock reserve (floor)") ? at("Postgres row-lock reserve (floor)") : null;
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}, ${version("redis-server", ["--version"])}`;
  const lines = [...rows.keys()].map((name) => {
    const f = at(name);
    const vsEcho = name.includes("held") ? "" : (f.perSecond / echo.perSecond).toFixed(2);
    const vsRow = rowLock && !name.includes("held") ? (f.perSecond / rowLock.perSecond).toFixed(1) : "";
    return `| ${name} | ${Math.round(f.perSecond).toLocaleString("en")} | ${f.p50} | ${f.p99} | ${vsEcho} | ${vsRow} |`;
  });
  console.log(
    `\n${machine}\nmedians of ${o.rounds} rounds, ${o.requests.toLocaleString("en")} requests each, ${o.connections} connections, load generator on the same machine\n`,
  );
  console.log("| scenario | per second | p50 ms | p99 ms | x echo | x row lock |\n|---|---|---|---|---|---|");
  console.log(lines.join("\n"));
  console.log(
    `\nCheckout with cash on delivery: ${whole.orders} orders, ${Math.round(whole.perSecond)}/s from confirm to recorded; captured-to-recorded lag p50 ${whole.lagP50Ms} ms, p99 ${whole.lagP99Ms} ms.`,
  );
  console.log("Nothing was oversold: the audit of every scenario's sale balanced, and every answer was the expected one.");
  const results = new URL("./results/", import.meta.url);
  await mkdir(results, { recursive: true });
  const file = new URL(`${new Date().toISOString().replace(/[:.]/g, "-")}.json`, results);
  await writeFile(
    file,
    JSON.stringify({ machine, options: { ...o, secret: undefined, admin: undefined }, rows: Object.fromEntries(rows), checkout: whole }, null, 2),
  );
  console.log(`Figures: ${fileURLToPath(file)}`);
} catch (error) {
  console.error(error instanceof Wrong ? `WRONG: ${error.message}` : error);
  process.exitCode = 1;
} finally {
  for (const stop of stops.reverse()) await stop();
}
