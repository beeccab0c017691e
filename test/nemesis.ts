/**
 * A campaign: two api and two worker processes, Redis with a replica, Postgres, the sandbox gateway and a mail server,
 * all real and each behind a TCP link; shoppers with journals of what they were told; and a nemesis that draws faults.
 * Then everything is healed, and the auditor reads the books. Every choice comes from one seed: each shopper and the
 * nemesis have streams of their own, so that none depends on another's timing.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import postgres from "postgres";
import { faultsOf as wrongInBooks } from "./books.ts";
import { type Disk, openDisk } from "./disk.ts";
import { inspect, keptLine } from "./heap.ts";
import { faultsOf, strike } from "./nemesis-faults.ts";
import { Processes, ROLES, Servers, type Stops } from "./nemesis-servers.ts";
import { Shoppers } from "./nemesis-shoppers.ts";
import { operator, pause, saleBodyOf, until } from "./support.ts";

const UNITS = 60;
const SHOPPERS = 160;
const HEAL_MS_MAX = 90_000;
const SHOP_MS_MAX = 60_000;
const FAULTS_MIN = 3;
const CONFIRMED_MIN = 10;

type Say = (line: string) => void;
export interface Verdict {
  faults: string[];
  done: string[];
  confirmed: number;
  lost: number;
  /** What each process keeps at the end, in one line. */
  memory: string;
}

export async function campaign(seed: number, ms: number, say: Say): Promise<Verdict> {
  const disk = await openDisk("fukubukuro-campaign-");
  if (!disk.full) say("  no disk of its own on this machine: the disk is never full");
  const stops: Stops = [disk.close];
  try {
    return await run(disk, stops, seed, ms, say);
  } finally {
    for (const stop of stops.reverse()) await stop().catch(() => {});
  }
}

async function run(disk: Disk, stops: Stops, seed: number, ms: number, say: Say): Promise<Verdict> {
  const servers = new Servers(disk.folder, stops);
  await servers.start();
  const processes = new Processes(servers);
  await processes.start(stops);
  const saleId = await openSale(processes);
  const shoppers = new Shoppers(processes, saleId, seed);
  stops.push(async () => (shoppers.tired = true));
  const told = { confirmed: shoppers.confirmed, granted: UNITS };
  const shopping = shoppers.shop(SHOPPERS, ms * 0.8);
  const done = await strike(faultsOf({ servers, processes, disk, saleId, told }), seed, ms, say);

  heal(servers, processes);
  const late = setTimeout(() => (shoppers.tired = true), SHOP_MS_MAX);
  await shopping;
  clearTimeout(late);
  const faults = await booksOf(servers, saleId, told);
  if (shoppers.tired)
    for (const [id, last] of shoppers.waiting)
      faults.push(`${SHOP_MS_MAX} ms after everything was healed ${id} still waited: ${last}`);
  if (done.length < FAULTS_MIN) faults.push(`only ${done.length} faults: the run is void`);
  const confirmed = shoppers.confirmed.size;
  if (confirmed < CONFIRMED_MIN) faults.push(`only ${confirmed} shoppers were told confirmed: the run is void`);
  if (faults.length > 0 && process.env.CAMPAIGN_KEEP)
    await keepEvidence(process.env.CAMPAIGN_KEEP, seed, faults, processes.output(), servers.postgres.url);
  const memory = (await Promise.all(processes.all.map((p, i) => memoryOf(`${ROLES[i]} ${i}`, p.output())))).join("; ");
  say(`  ${memory}`);
  return { faults, done, confirmed, lost: shoppers.lost, memory };
}

async function openSale(processes: Processes): Promise<string> {
  const sale = saleBodyOf({
    holdMs: 4_000,
    maxUnitsPerCustomer: 3,
    items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: UNITS }],
  });
  const created = async () => (await operator(processes.api(0).url).create(sale)).status === 201;
  await until("the sale", created, 30_000);
  return sale.id;
}

function heal(servers: Servers, processes: Processes): void {
  for (const l of Object.values(servers.links)) {
    l.loseReplies(false);
    l.blackHole(false);
    l.cut();
  }
  for (const p of processes.all) p.kill("SIGCONT");
}

/** What is wrong with the books, once nothing is under way or the time for that has passed. */
async function booksOf(
  s: Servers,
  saleId: string,
  told: { confirmed: Set<string>; granted: number },
): Promise<string[]> {
  const places = {
    databaseUrl: s.postgres.url,
    redisUrl: s.redis.url,
    gatewayUrl: s.gateway.url,
    mailsFolder: s.mailsFolder,
  };
  let wrong: string[] = [];
  const balance = async () => {
    wrong = await wrongInBooks(places, saleId, told);
    if (wrong.length > 0) await pause(300);
    return wrong.length === 0;
  };
  await until("the books to balance", balance, HEAL_MS_MAX).catch(() => {});
  return wrong;
}

/** After collections. A process that was started again a moment ago may not answer yet. */
async function memoryOf(name: string, output: string): Promise<string> {
  try {
    const inspector = await inspect(output);
    const kept = await inspector.kept();
    inspector.close();
    return keptLine(`${name}:`, kept);
  } catch {
    return `${name}: not to be read`;
  }
}

/** CAMPAIGN_KEEP=folder: what the processes logged and what Postgres has, of a seed that failed. */
async function keepEvidence(
  to: string,
  seed: number,
  wrong: string[],
  output: string,
  databaseUrl: string,
): Promise<void> {
  const sql = postgres(databaseUrl, { max: 1 });
  const rows = {
    payments: await sql`select * from payments`,
    reservations: await sql`select * from reservations`,
    items: await sql`select * from items`,
  };
  await sql.end();
  await mkdir(to, { recursive: true });
  await writeFile(join(to, `${seed}.json`), JSON.stringify({ wrong, ...rows }, null, 1));
  await writeFile(join(to, `${seed}.log`), output);
}
