/**
 * A campaign: two api and two worker processes, Redis with a replica, Postgres, the sandbox gateway and a mail server,
 * all real and each behind a TCP link; shoppers with journals of what they were told; and a nemesis that draws faults
 * from a seed. Then everything is healed, and the auditor reads the books.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import { nanoid } from "nanoid";
import postgres from "postgres";
import { startPostgres } from "../src/local/postgres.ts";
import { startGuarded } from "../src/local/processes.ts";
import { startRedis } from "../src/local/redis.ts";
import { startSandboxProcess } from "../src/local/stack.ts";
import { programOf } from "../src/places.ts";
import { faultsOf } from "./books.ts";
import { startProcess } from "./crash.ts";
import { openDisk } from "./disk.ts";
import { inspect, keptLine, withInspector } from "./heap.ts";
import { type Link, startProxy } from "./proxy.ts";
import { ADMIN_TOKEN, inParallel, operator, pause, SECRET, saleBodyOf, shopper, until } from "./support.ts";

const UNITS = 60;
const SHOPPERS = 160;
const HEAL_MS_MAX = 90_000;
const SHOP_MS_MAX = 60_000;

/** mulberry32: the same numbers for the same seed, anywhere. */
export function randomOf(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export interface Verdict {
  faults: string[];
  done: string[];
  confirmed: number;
  lost: number;
  /** What each process keeps at the end, in one line. */
  memory: string;
}

export async function campaign(seed: number, ms: number, say: (line: string) => void): Promise<Verdict> {
  const random = randomOf(seed);
  const pick = <T>(list: T[]): T => list[Math.floor(random() * list.length)] as T;
  const disk = await openDisk("fukubukuro-campaign-");
  const { folder } = disk;
  if (!disk.full) say("  no disk of its own on this machine: the disk is never full");
  const stops: Array<() => Promise<unknown>> = [disk.close];
  try {
    return await run();
  } finally {
    for (const stop of stops.reverse()) await stop().catch(() => {});
  }

  async function run(): Promise<Verdict> {
    // ---- servers, each behind a link ----
    const password = nanoid();
    let redisNo = 0;
    const startOneRedis = (port?: number, at = `redis-${++redisNo}`, settings: string[] = []) =>
      startRedis(join(folder, at), undefined, {
        password,
        settings: [`masterauth ${password}`, ...settings],
        ...(port && { port }),
      });
    let redis = await startOneRedis();
    let redisFolder = "redis-1";
    const replicaFolder = () => `redis-${redisNo}`;
    let replica = await startOneRedis(undefined, undefined, [`replicaof 127.0.0.1 ${redis.port}`]);
    stops.push(async () => Promise.all([redis.stop(), replica.stop()]));
    const pgPassword = nanoid();
    let pg = await startPostgres(join(folder, "postgres"), { password: pgPassword });
    stops.push(() => pg.stop());
    const ledger = {
      SANDBOX_LEDGER: join(folder, "ledger.jsonl"),
      SANDBOX_LATENCY_MS: "40",
      SANDBOX_JITTER_MS: "40",
      SANDBOX_IN_FLIGHT_MAX: "4",
    };
    let gateway = await startSandboxProcess(ledger);
    stops.push(() => gateway.stop());
    const mailsFolder = join(folder, "mails");
    let mails = await startMailServer(mailsFolder);
    stops.push(() => mails.stop());
    const portOf = (url: string) => Number(new URL(url).port);
    const link = async (port: number): Promise<Link> => {
      const l = await startProxy(port);
      stops.push(l.close);
      return l;
    };
    // Half of the processes reach Redis by another link, so that it can split in two.
    const redisLinks = [await link(redis.port), await link(redis.port)] as const;
    const links = {
      redis: together(redisLinks),
      postgres: await link(portOf(pg.url)),
      gateway: await link(portOf(gateway.url)),
      smtp: await link(portOf(mails.url)),
    };
    const through = (url: string, l: Link) => {
      const u = new URL(url);
      u.port = String(l.port);
      return u.href;
    };
    const env = {
      DATABASE_URL: through(pg.url, links.postgres),
      SANDBOX_GATEWAY_URL: `http://127.0.0.1:${links.gateway.port}`,
      SMTP_URL: `smtp://127.0.0.1:${links.smtp.port}`,
      DATA_DIR: folder,
      ADMIN_TOKEN,
      SHOPPER_TOKEN_SECRET: SECRET,
      GATEWAY_TIMEOUT_MS: "600",
      GATEWAY_OVERRUN_MS: "200",
      GATEWAY_LEASE_MS: "1000",
      RETRY_GRACE_MS: "3000",
      LOG_LEVEL: "info",
      ...withInspector(),
    };
    const world = { env: (more: Record<string, string> = {}) => ({ ...env, ...more }) };

    // ---- the service's processes: one that is killed is started again ----
    type Process = Awaited<ReturnType<typeof startProcess>>;
    let over = false;
    const roles = ["api", "api", "worker", "worker"] as const;
    const processes: Process[] = [];
    const outputs: Array<() => string> = [];
    const start = async (i: number) => {
      const redisUrl = `redis://:${password}@127.0.0.1:${(redisLinks[i % 2] as Link).port}`;
      processes[i] = await startProcess(world, { ROLE: roles[i] as string, REDIS_URL: redisUrl });
      const p = processes[i];
      outputs.push(() => `---- ${roles[i]} ${i}, process ${p.pid} ----\n${p.output()}`);
      void p.ended.then(async () => {
        if (over) return;
        await pause(200);
        await start(i).catch(() => {});
      });
    };
    await start(0);
    await Promise.all([start(1), start(2), start(3)]);
    stops.push(async () => {
      over = true;
      for (const p of processes) p.kill("SIGCONT");
      for (const p of processes) p.kill("SIGKILL");
      await Promise.all(processes.map((p) => p.ended));
    });

    // ---- the sale and its shoppers ----
    const sale = saleBodyOf({
      holdMs: 4_000,
      maxUnitsPerCustomer: 3,
      items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: UNITS }],
    });
    await until(
      "the sale",
      async () => (await operator((processes[0] as Process).url).create(sale)).status === 201,
      30_000,
    );
    const told = { confirmed: new Set<string>(), granted: UNITS };
    let lost = 0;
    /** Everything was healed long ago: a shopper who still waits has found a fault of the service. */
    let tired = false;
    const waiting = new Map<string, string>();
    const url = () => (processes[random() < 0.5 ? 0 : 1] as Process).url;
    const ask = async <T>(f: (u: string) => Promise<T>): Promise<T | null> => f(url()).catch(() => null);
    const shop = (i: number) => shopOnce(`c${i}`).finally(() => !tired && waiting.delete(`c${i}`));
    async function shopOnce(id: string): Promise<void> {
      await pause(random() * ms * 0.8);
      const payments = pick([
        [{ token: "tok_ok" }],
        [{ gateway: "cod" }],
        [{ token: "tok_declined" }, { token: "tok_ok" }],
        [{ token: "tok_timeout_after_charge" }],
        [{ token: "tok_error_then_ok" }],
      ]) as Array<Record<string, string>>;
      for (let tries = 0; tries < 400 && !tired; tries++) {
        const held = await ask((u) => shopper(u, id).reserve(sale.id, "k"));
        if (held?.status === 409 && held.body.code === "SOLD_OUT") return;
        if (held?.status === 410) return void lost++;
        if (held?.body.status === "expired" || held?.body.status === "released") return;
        if (held?.body.status === "confirmed") return void told.confirmed.add(held.body.orderId as string);
        if (held?.status === 200 || held?.status === 201) {
          const payment = payments.length > 1 && tries > 0 ? payments[1] : payments[0];
          const paid = await ask((u) => shopper(u, id).confirm(held.body.id, payment, { waitS: 2 }));
          waiting.set(
            id,
            `held ${held.status} ${held.body.status}, then ${paid?.status} ${JSON.stringify(paid?.body)?.slice(0, 300)}`,
          );
          if (paid?.body.status === "confirmed") return void told.confirmed.add(paid.body.orderId as string);
          if (paid?.body.code === "HOLD_LOST") return void lost++;
        }
        await pause(100 + random() * 200);
        if (over) return;
      }
    }
    const shopping = inParallel(
      SHOPPERS,
      Array.from({ length: SHOPPERS }, (_, i) => () => shop(i)),
    );

    // ---- the nemesis ----
    const done: string[] = [];
    const admin = async (port: number, f: (r: Redis) => Promise<unknown>) => {
      const r = new Redis({ port, host: "127.0.0.1", password, maxRetriesPerRequest: 1, lazyConnect: true });
      r.on("error", () => {});
      await r.connect();
      await f(r).finally(() => r.disconnect());
    };
    const some = (l: Pick<Link, "cut">, f: (on: boolean) => void, forMs: number) => async () => {
      f(true);
      await pause(forMs);
      f(false);
      l.cut();
    };
    const killPid = (pid: number) => process.kill(-pid, "SIGKILL");
    /** All data is on it. A server that ended because of it is started again, as a supervisor would do. */
    async function fillDisk(full: (on: boolean) => Promise<void>): Promise<void> {
      await full(true);
      await pause(1_200);
      await full(false);
      const lives = (port: number) =>
        admin(port, (r) => r.ping()).then(
          () => true,
          () => false,
        );
      // A store that ends itself over a full disk does so when it next writes.
      await pause(300);
      if (!(await lives(redis.port))) redis = await startOneRedis(redis.port, redisFolder);
      if (!(await lives(replica.port)))
        replica = await startOneRedis(replica.port, replicaFolder(), [`replicaof 127.0.0.1 ${redis.port}`]);
      const sql = postgres(pg.url, { max: 1, connect_timeout: 2, onnotice: () => {} });
      const answered = await sql`select 1`.then(
        () => true,
        () => false,
      );
      await sql.end({ timeout: 1 });
      if (!answered) await restartPostgres();
    }
    async function restartPostgres(): Promise<void> {
      try {
        killPid(pg.pid);
      } catch {
        // it has ended by itself
      }
      await pause(300);
      // Its backends may hold the shared memory a little longer.
      pg = await until(
        "Postgres to start again",
        () => startPostgres(join(folder, "postgres"), { password: pgPassword }),
        30_000,
      );
      links.postgres.retarget(portOf(pg.url));
    }
    const faults: Record<string, () => Promise<void>> = {
      "kill an api process": async () => (processes[pick([0, 1])] as Process).kill(),
      "kill a worker": async () => (processes[pick([2, 3])] as Process).kill(),
      "freeze a worker": async () => {
        const p = processes[pick([2, 3])] as Process;
        p.kill("SIGSTOP");
        await pause(1_800);
        p.kill("SIGCONT");
      },
      "replies of Redis are lost": some(links.redis, links.redis.loseReplies, 300),
      "a black hole to Redis": some(links.redis, links.redis.blackHole, 800),
      "a black hole to Postgres": some(links.postgres, links.postgres.blackHole, 800),
      "links to Postgres are cut": async () => links.postgres.cut(),
      "the gateway falls silent after charging": some(links.gateway, links.gateway.loseReplies, 1_000),
      "the mail server is away": some(links.smtp, links.smtp.blackHole, 1_000),
      "Redis is killed and comes back with its data": async () => {
        killPid(redis.pid);
        await pause(300);
        redis = await startOneRedis(redis.port, redisFolder);
      },
      "Redis is emptied": () => admin(redis.port, (r) => r.flushall()),
      "Redis has no memory left": async () => {
        await admin(redis.port, (r) => r.config("SET", "maxmemory", "1mb"));
        await pause(1_000);
        await admin(redis.port, (r) => r.config("SET", "maxmemory", "0"));
      },
      "a stale replica is promoted": async () => {
        await admin(replica.port, (r) => r.replicaof("NO", "ONE"));
        await pause(500);
        const old = redis;
        redis = replica;
        redisFolder = replicaFolder();
        links.redis.retarget(redis.port);
        await old.stop();
        replica = await startOneRedis(undefined, undefined, [`replicaof 127.0.0.1 ${redis.port}`]);
      },
      "two primaries at once": async () => {
        // Half of the processes go on with the old one, which nobody has told that it is over.
        await admin(replica.port, (r) => r.replicaof("NO", "ONE"));
        redisLinks[1].retarget(replica.port);
        await pause(2_500);
        const old = redis;
        redis = replica;
        redisFolder = replicaFolder();
        redisLinks[0].retarget(redis.port);
        await old.stop();
        replica = await startOneRedis(undefined, undefined, [`replicaof 127.0.0.1 ${redis.port}`]);
      },
      "Postgres is killed and comes back": restartPostgres,
      "the gateway is killed and comes back": async () => {
        killPid(gateway.pid);
        await pause(300);
        gateway = await startSandboxProcess(ledger);
        links.gateway.retarget(portOf(gateway.url));
      },
      "the mail server is killed and comes back": async () => {
        killPid(mails.pid);
        await pause(300);
        mails = await startMailServer(mailsFolder);
        links.smtp.retarget(portOf(mails.url));
      },
      ...(disk.full && { "the disk is full": () => fillDisk(disk.full as NonNullable<typeof disk.full>) }),
      "a top-up": async () => {
        const key = `top-${told.granted}`;
        const answered = await until(
          "the top-up",
          async () => (await ask((u) => operator(u).topUp(sale.id, 2, key)))?.status === 200,
          30_000,
        ).catch(() => false);
        if (answered) told.granted += 2;
        else throw new Error("a top-up was never answered");
      },
    };
    // CAMPAIGN_FAULTS=name,name: these alone, to look at one kind closely.
    const catalogue = process.env.CAMPAIGN_FAULTS?.split(",") ?? Object.keys(faults);
    const end = performance.now() + ms;
    while (performance.now() < end) {
      await pause(200 + random() * 800);
      const name = pick(catalogue);
      say(`  ${name}`);
      await faults[name]?.();
      done.push(name);
    }

    // ---- heal, wait, audit ----
    for (const l of Object.values(links)) {
      l.loseReplies(false);
      l.blackHole(false);
      l.cut();
    }
    for (const p of processes) p.kill("SIGCONT");
    const late = setTimeout(() => (tired = true), SHOP_MS_MAX);
    await shopping;
    clearTimeout(late);
    const places = { databaseUrl: pg.url, redisUrl: redis.url, gatewayUrl: gateway.url, mailsFolder };
    let wrong: string[] = [];
    await until(
      "the books to balance",
      async () => {
        wrong = await faultsOf(places, sale.id, told);
        if (wrong.length > 0) await pause(300);
        return wrong.length === 0;
      },
      HEAL_MS_MAX,
    ).catch(() => {});
    if (tired)
      wrong.push(
        ...[...waiting].map(
          ([id, last]) => `${SHOP_MS_MAX} ms after everything was healed ${id} still waited: ${last}`,
        ),
      );
    if (done.length < 3) wrong.push(`only ${done.length} faults: the run is void`);
    if (told.confirmed.size < 10)
      wrong.push(`only ${told.confirmed.size} shoppers were told confirmed: the run is void`);
    if (wrong.length > 0 && process.env.CAMPAIGN_KEEP)
      await keepEvidence(process.env.CAMPAIGN_KEEP, seed, wrong, outputs, pg.url);
    const memory = (await Promise.all(processes.map((p, i) => memoryOf(`${roles[i]} ${i}`, p.output())))).join("; ");
    say(`  ${memory}`);
    return { faults: wrong, done, confirmed: told.confirmed.size, lost, memory };
  }
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

/** Several links as one. */
function together(all: readonly Link[]): Pick<Link, "loseReplies" | "blackHole" | "cut" | "retarget"> {
  const each = (f: (l: Link) => void) => {
    for (const l of all) f(l);
  };
  return {
    loseReplies: (on) => each((l) => l.loseReplies(on)),
    blackHole: (on) => each((l) => l.blackHole(on)),
    cut: () => each((l) => l.cut()),
    retarget: (port) => each((l) => l.retarget(port)),
  };
}

/** A mail server of its own, in a process of its own. */
async function startMailServer(folder: string): Promise<{ url: string; pid: number; stop(): Promise<void> }> {
  let tell: (url: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const server = startGuarded("mail-server", [...programOf(new URL("./mail-server.ts", import.meta.url)), folder], {
    signal: "TERM",
    onLine: (line) => line.startsWith("smtp://") && tell(line.trim()),
  });
  return { url: await Promise.race([told, server.endedEarly]), pid: server.child.pid as number, stop: server.stop };
}

/** CAMPAIGN_KEEP=folder: what the processes logged and what Postgres has, of a seed that failed. */
async function keepEvidence(
  to: string,
  seed: number,
  wrong: string[],
  outputs: Array<() => string>,
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
  await writeFile(join(to, `${seed}.log`), outputs.map((o) => o()).join("\n"));
}
