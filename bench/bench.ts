/** The judge of every performance claim: floors, correctness and figures in the same run. `npm run bench -- --help` */
import { execFileSync } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { cpus, totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import { Command, InvalidArgumentError } from "commander";
import { signShopperToken } from "../src/http/auth.ts";
import { load, type Measured, median, Wrong } from "./load.ts";
import { overload } from "./overload.ts";
import { measurePersist } from "./persist.ts";
import { compare, page, type Results, sentences, table } from "./report.ts";
import { checkout, heldRate, opening, post, round, type World } from "./scenarios.ts";
import { measureScripts } from "./scripts.ts";
import { sickGateway } from "./sick-gateway.ts";
import { starts } from "./start.ts";
import { operatorOf, privateStack, startFloor, type Target } from "./target.ts";

const number = (text: string) => {
  if (!/^\d{1,9}$/.test(text) || Number(text) < 1) throw new InvalidArgumentError("a whole number from 1");
  return Number(text);
};
const program = new Command("bench")
  .description(
    "Runs sales under load and prints their figures beside their floors. Without --url a private stack is started and stopped again.\nWrites JSON and a page with charts to bench/results/. Exit code 1 when an answer or a book was wrong.",
  )
  .option(
    "--url <url>",
    "a running service instead of a private stack; needs --secret and --admin; without the floors in its stores",
  )
  .option("--secret <secret>", "its SHOPPER_TOKEN_SECRET")
  .option("--admin <token>", "its ADMIN_TOKEN")
  .option("--rounds <n>", "rounds, of which the medians are printed", number, 3)
  .option("--requests <n>", "requests a round and scenario", number, 60_000)
  .option("--connections <n>", "connections of the load generator: a rush has many", number, 256)
  .option("--orders <n>", "orders of the checkout with cash on delivery", number, 6_000)
  .option("--rate <n>", "held rate of the latency scenario, requests per second", number, 2_000)
  .option("--processes <n>", "api processes of the private stack", number, 1)
  .option("--long", "also a million live holds, a thousand items, and two processes beside one")
  .option("--only <names>", "of these, comma-separated: round, held, opening, checkout, stores, overload")
  .option(
    "--sick-gateway [case]",
    "nothing but what a sick gateway costs the charges, each case beside the healthy pace",
  )
  .option("--start", "only how long the build takes to start and its memory, beside the sources (npm run build before)")
  .option("--compare <file>", "print this run beside an older one's JSON")
  .option("--print <file>", "measure nothing: print an older run's JSON again (with --compare: beside another)")
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
  processes: number;
  long?: boolean;
  only?: string;
  sickGateway?: boolean | string;
  start?: boolean;
  compare?: string;
  print?: string;
}>();
const PARTS = ["round", "held", "opening", "checkout", "stores", "overload"];
const only = new Set(o.only?.split(",") ?? PARTS);
for (const part of only) if (!PARTS.includes(part)) program.error(`--only knows ${PARTS.join(", ")}, not ${part}`);
if (o.url && (!o.secret || !o.admin)) program.error("--url needs --secret and --admin");

const say = (line: string) => process.stderr.write(`${line}\n`);
const readResults = async (file: string) => JSON.parse(await readFile(file, "utf8")) as Results;
const SLOW_GATEWAY = { limit: 4, meanMs: 250, orders: 120 };

function version(command: string, args: string[]): string {
  try {
    return execFileSync(command, args, { encoding: "utf8" }).trim().split("\n")[0] ?? "?";
  } catch {
    return "?";
  }
}
const machine = `${cpus().length} x ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}, ${version("redis-server", ["--version"])}`;

/** The one with the median rate. */
const middle = <T extends { perSecond: number }>(all: T[]): T =>
  [...all].sort((a, b) => a.perSecond - b.perSecond)[Math.floor(all.length / 2)] as T;

async function measure(target: Target, results: Results): Promise<void> {
  const stops: Array<() => Promise<unknown>> = [];
  const note = (name: string, f: Measured) => {
    const { perSecond, p50, p99, statuses } = f;
    results.rows[name] = [...(results.rows[name] ?? []), { perSecond, p50, p99, statuses }];
    say(
      `  ${name.padEnd(34)} ${Math.round(perSecond).toLocaleString("en").padStart(8)}/s   p50 ${p50} ms   p99 ${p99} ms`,
    );
  };
  try {
    const floors = await Promise.all([startFloor("hono", target.stores), startFloor("node", target.stores)]);
    stops.push(...floors.map((f) => f.stop));
    say("Making tokens ...");
    const tokens = Array.from({ length: Math.max(o.requests, o.orders) }, (_, i) =>
      signShopperToken(target.secret, `bench-${i}`, 6 * 3_600_000),
    );
    const w: World = {
      target,
      op: operatorOf(target),
      floor: floors[0].url,
      nodeFloor: floors[1].url,
      tokens,
      o,
      note,
    };
    // All sides warm: the first thousands of requests are compiled while they run.
    const warm = await w.op.makeSale(1_000_000);
    const warming = { amount: Math.min(5_000, o.requests), connections: o.connections };
    for (const url of [w.floor, w.nodeFloor]) await load(url, warming, post(w, "/echo", "w"));
    await load(target.url, warming, post(w, `/v1/sales/${warm}/reservations`, "w"));
    if (only.has("round")) {
      for (let n = 1; n <= o.rounds; n++) {
        say(`Round ${n} of ${o.rounds}`);
        await round(w, n);
      }
    }
    if (only.has("held")) await heldRate(w);
    if (only.has("opening"))
      results.opening = await opening(
        w,
        median((results.rows["refused: not open yet"] ?? []).map((f) => f.perSecond)) || 6_000,
      );
    if (only.has("overload")) results.overload = await overload(w);
    if (only.has("checkout")) {
      const cod = [];
      for (let n = 1; n <= o.rounds; n++) cod.push(await checkout(w, "cod", o.orders));
      results.checkouts.push(middle(cod));
      if (target.stores) {
        const slow = await checkout(w, "sandbox", SLOW_GATEWAY.orders);
        results.checkouts.push(slow);
        results.slowGateway = {
          perSecond: slow.perSecond,
          floorPerSecond: (SLOW_GATEWAY.limit * 1000) / SLOW_GATEWAY.meanMs,
        };
      }
    }
    if (only.has("stores") && target.stores) {
      results.scripts = await measureScripts(o.long === true, say);
      const persists = [];
      for (let n = 1; n <= o.rounds; n++) persists.push(await measurePersist(target.stores.databaseUrl, 20_000));
      results.persist = middle(persists);
    }
  } finally {
    for (const stop of stops.reverse()) await stop();
  }
}

async function run(processes: number): Promise<Results> {
  if (!o.url) say(`Starting a private stack (${processes} api process${processes > 1 ? "es" : ""}) ...`);
  const none = { stop: async () => {} };
  const target: Target = o.url
    ? { url: o.url, secret: o.secret ?? "", admin: o.admin ?? "", ...none }
    : await privateStack(processes);
  const { secret: _s, admin: _a, ...options } = o;
  const results: Results = {
    at: new Date().toISOString(),
    machine,
    options: { ...options, processes },
    rows: {},
    checkouts: [],
  };
  try {
    await measure(target, results);
    if (target.memory) results.memory = await target.memory();
  } finally {
    await target.stop();
  }
  const folder = new URL("./results/", import.meta.url);
  await mkdir(folder, { recursive: true });
  const file = (ending: string) =>
    new URL(`${results.at.replace(/[:.]/g, "-")}${processes > 1 ? `-${processes}` : ""}.${ending}`, folder);
  await writeFile(file("json"), JSON.stringify(results, null, 2));
  await writeFile(file("html"), page(results));
  show(results);
  console.log(
    "\nNothing was oversold: every answer was the expected one, and the books of every scenario's sale balanced.",
  );
  console.log(`Figures: ${fileURLToPath(file("json"))}\nCharts:  ${fileURLToPath(file("html"))}`);
  return results;
}

function show(r: Results): void {
  console.log(`\n${r.machine}`);
  console.log(
    `${r.options.processes} api process(es); medians of ${r.options.rounds} rounds, ${Number(r.options.requests).toLocaleString("en")} requests each, ${r.options.connections} connections; load generator on the same machine\n`,
  );
  console.log(`${table(r)}\n\n${sentences(r).join("\n")}`);
}

if (o.sickGateway) {
  say(machine);
  await sickGateway((line) => console.log(line), o.sickGateway === true ? "" : o.sickGateway);
  process.exit(0);
}
async function judge(): Promise<void> {
  const results = o.print ? await readResults(o.print) : await run(o.processes);
  if (o.print) show(results);
  if (o.long && !o.url && !o.print && o.processes === 1) await run(2);
  if (o.compare) console.log(`\n${compare(results, await readResults(o.compare))}`);
}

try {
  await (o.start ? starts(o.rounds, say) : judge());
} catch (error) {
  console.error(error instanceof Wrong ? `WRONG: ${error.message}` : error);
  process.exitCode = 1;
}
