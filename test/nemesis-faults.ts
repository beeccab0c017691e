/** The nemesis of a campaign: the faults it knows, and how it draws them. */
import { Redis } from "ioredis";
import postgres from "postgres";
import { pick, type Random, randomOf } from "../src/local/random.ts";
import type { Disk } from "./disk.ts";
import { killPid, type Processes, type Servers } from "./nemesis-servers.ts";
import { askOne } from "./nemesis-shoppers.ts";
import type { Link } from "./proxy.ts";
import { operator, pause, until } from "./support.ts";

/** Of each fault the random choices are a stream of its own: how often it asked does not change what is drawn next. */
export type Fault = (random: Random) => Promise<void>;
export interface Battlefield {
  servers: Servers;
  processes: Processes;
  disk: Disk;
  saleId: string;
  told: { granted: number };
}

/** Draws faults until `ms` have passed; answers their names. */
export async function strike(
  faults: Record<string, Fault>,
  seed: number,
  ms: number,
  say: (line: string) => void,
): Promise<string[]> {
  // CAMPAIGN_FAULTS=name,name: these alone, to look at one kind closely.
  const names = process.env.CAMPAIGN_FAULTS?.split(",") ?? Object.keys(faults);
  const random = randomOf(seed, "nemesis");
  const done: string[] = [];
  for (const end = performance.now() + ms; performance.now() < end; ) {
    await pause(200 + random() * 800);
    const name = pick(random, names);
    say(`  ${name}`);
    await faults[name]?.(randomOf(seed, `fault-${done.length}`));
    done.push(name);
  }
  return done;
}

export function faultsOf(b: Battlefield): Record<string, Fault> {
  const { full } = b.disk;
  return {
    ...faultsOfProcesses(b.processes),
    ...faultsOfLinks(b.servers),
    ...faultsOfRedis(b.servers),
    ...faultsOfServers(b.servers),
    ...(full && { "the disk is full": () => fillDisk(b.servers, full) }),
    "a top-up": (random) => topUp(b, random),
  };
}

const faultsOfProcesses = (p: Processes): Record<string, Fault> => ({
  "kill an api process": async (random) => p.api(pick(random, [0, 1])).kill(),
  "kill a worker": async (random) => p.worker(pick(random, [0, 1])).kill(),
  "freeze a worker": async (random) => {
    const worker = p.worker(pick(random, [0, 1]));
    worker.kill("SIGSTOP");
    await pause(1_800);
    worker.kill("SIGCONT");
  },
});

function faultsOfLinks({ links }: Servers): Record<string, Fault> {
  const some = (l: Pick<Link, "cut">, f: (on: boolean) => void, forMs: number) => async () => {
    f(true);
    await pause(forMs);
    f(false);
    l.cut();
  };
  return {
    "replies of Redis are lost": some(links.redis, links.redis.loseReplies, 300),
    "a black hole to Redis": some(links.redis, links.redis.blackHole, 800),
    "a black hole to Postgres": some(links.postgres, links.postgres.blackHole, 800),
    "links to Postgres are cut": async () => links.postgres.cut(),
    "the gateway falls silent after charging": some(links.gateway, links.gateway.loseReplies, 1_000),
    "the mail server is away": some(links.smtp, links.smtp.blackHole, 1_000),
  };
}

const faultsOfRedis = (s: Servers): Record<string, Fault> => ({
  "Redis is killed and comes back with its data": async () => {
    killPid(s.redis.pid);
    await pause(300);
    await s.restartRedis();
  },
  "Redis is emptied": () => command(s, s.redis.port, (r) => r.flushall()),
  "Redis has no memory left": async () => {
    await command(s, s.redis.port, (r) => r.config("SET", "maxmemory", "1mb"));
    await pause(1_000);
    await command(s, s.redis.port, (r) => r.config("SET", "maxmemory", "0"));
  },
  "a stale replica is promoted": async () => {
    await command(s, s.replica.port, (r) => r.replicaof("NO", "ONE"));
    await pause(500);
    await s.promoteReplica(s.links.redis);
  },
  "two primaries at once": async () => {
    // Half of the processes go on with the old one, which nobody has told that it is over.
    await command(s, s.replica.port, (r) => r.replicaof("NO", "ONE"));
    s.redisLinks[1].retarget(s.replica.port);
    await pause(2_500);
    await s.promoteReplica(s.redisLinks[0]);
  },
});

const faultsOfServers = (s: Servers): Record<string, Fault> => ({
  "Postgres is killed and comes back": () => s.restartPostgres(),
  "the gateway is killed and comes back": () => s.restartGateway(),
  "the mail server is killed and comes back": () => s.restartMails(),
});

async function command(s: Servers, port: number, f: (r: Redis) => Promise<unknown>): Promise<void> {
  const r = new Redis({
    port,
    host: "127.0.0.1",
    password: s.redisPassword,
    maxRetriesPerRequest: 1,
    lazyConnect: true,
  });
  r.on("error", () => {});
  await r.connect();
  await f(r).finally(() => r.disconnect());
}

const yes = (did: Promise<unknown>): Promise<boolean> =>
  did.then(
    () => true,
    () => false,
  );

/** Everything that keeps anything is on it. Who ended over it is started again, as a supervisor would. */
async function fillDisk(s: Servers, full: (on: boolean) => Promise<void>): Promise<void> {
  await full(true);
  await pause(1_200);
  await full(false);
  const lives = (port: number) => yes(command(s, port, (r) => r.ping()));
  // A store that ends itself over a full disk does so when it next writes.
  await pause(300);
  if (!(await lives(s.redis.port))) await s.restartRedis();
  if (!(await lives(s.replica.port))) await s.startReplica(s.replica);
  const sql = postgres(s.postgres.url, { max: 1, connect_timeout: 2, onnotice: () => {} });
  const answered = await yes(sql`select 1`);
  await sql.end({ timeout: 1 });
  if (!answered) await s.restartPostgres();
}

/** Asked with the same key until it is answered. */
async function topUp({ processes, saleId, told }: Battlefield, random: Random): Promise<void> {
  const key = `top-${told.granted}`;
  const ask = async () => (await askOne(processes, random, (u) => operator(u).topUp(saleId, 2, key)))?.status === 200;
  if (!(await yes(until("the top-up", ask, 30_000)))) throw new Error("a top-up was never answered");
  told.granted += 2;
}
