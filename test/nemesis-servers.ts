/**
 * What a campaign runs on: Redis with a replica, Postgres, the sandbox gateway and a mail server, each behind a TCP
 * link, and four processes.
 */
import { join } from "node:path";
import { nanoid } from "nanoid";
import { startPostgres } from "../src/local/postgres.ts";
import { startGuarded } from "../src/local/processes.ts";
import { startRedis } from "../src/local/redis.ts";
import { startSandboxProcess } from "../src/local/stack.ts";
import { programOf } from "../src/places.ts";
import { startProcess } from "./crash.ts";
import { withInspector } from "./heap.ts";
import { type Link, startProxy } from "./proxy.ts";
import { ADMIN_TOKEN, pause, SECRET, until } from "./support.ts";

type Started<F extends (...args: never[]) => Promise<unknown>> = Awaited<ReturnType<F>>;
export type Stops = Array<() => Promise<unknown>>;
export type Process = Started<typeof startProcess>;
type Links = Pick<Link, "loseReplies" | "blackHole" | "cut" | "retarget">;

const portOf = (url: string) => Number(new URL(url).port);
export const killPid = (pid: number) => process.kill(-pid, "SIGKILL");

/** The fields are set by `start`; who is killed and started again takes the place of who was there. */
export class Servers {
  redis!: Started<typeof startRedis>;
  redisFolder = "redis-1";
  replica!: Started<typeof startRedis>;
  postgres!: Started<typeof startPostgres>;
  gateway!: Started<typeof startSandboxProcess>;
  mails!: Started<typeof startMailServer>;
  readonly mailsFolder: string;
  readonly redisPassword = nanoid();
  /** Half of the processes reach Redis by another link, so that it can split in two. */
  redisLinks!: readonly [Link, Link];
  links!: { redis: Links; postgres: Link; gateway: Link; smtp: Link };
  private redisNo = 0;
  private readonly postgresPassword = nanoid();

  constructor(
    readonly folder: string,
    private readonly stops: Stops,
  ) {
    this.mailsFolder = join(folder, "mails");
  }

  async start(): Promise<void> {
    this.redis = await this.startOneRedis();
    this.stops.push(() => this.redis.stop());
    await this.startReplica();
    this.stops.push(() => this.replica.stop());
    this.postgres = await this.startPostgres();
    this.stops.push(() => this.postgres.stop());
    this.gateway = await this.startGateway();
    this.stops.push(() => this.gateway.stop());
    this.mails = await startMailServer(this.mailsFolder);
    this.stops.push(() => this.mails.stop());
    this.redisLinks = [await this.link(this.redis.port), await this.link(this.redis.port)];
    this.links = {
      redis: together(this.redisLinks),
      postgres: await this.link(portOf(this.postgres.url)),
      gateway: await this.link(portOf(this.gateway.url)),
      smtp: await this.link(portOf(this.mails.url)),
    };
  }

  private async link(port: number): Promise<Link> {
    const link = await startProxy(port);
    this.stops.push(link.close);
    return link;
  }

  private startOneRedis(port?: number, at = `redis-${++this.redisNo}`, settings: string[] = []) {
    return startRedis(join(this.folder, at), undefined, {
      password: this.redisPassword,
      settings: [`masterauth ${this.redisPassword}`, ...settings],
      ...(port && { port }),
    });
  }

  /** A new one in a folder of its own, or the one that was there at its port. */
  async startReplica(old?: { port: number }): Promise<void> {
    const at = old ? this.replicaFolder() : undefined;
    this.replica = await this.startOneRedis(old?.port, at, [`replicaof 127.0.0.1 ${this.redis.port}`]);
  }

  async restartRedis(): Promise<void> {
    this.redis = await this.startOneRedis(this.redis.port, this.redisFolder);
  }

  /** The replica is Redis from now on, by the links that follow it; the old one ends, and a new replica begins. */
  async promoteReplica(follow: Pick<Link, "retarget">): Promise<void> {
    const old = this.redis;
    this.redis = this.replica;
    this.redisFolder = this.replicaFolder();
    follow.retarget(this.redis.port);
    await old.stop();
    await this.startReplica();
  }

  private replicaFolder = () => `redis-${this.redisNo}`;

  private startPostgres() {
    return startPostgres(join(this.folder, "postgres"), { password: this.postgresPassword });
  }

  async restartPostgres(): Promise<void> {
    try {
      killPid(this.postgres.pid);
    } catch {
      // it has ended by itself
    }
    await pause(300);
    // Its backends may hold the shared memory a little longer.
    this.postgres = await until("Postgres to start again", () => this.startPostgres(), 30_000);
    this.links.postgres.retarget(portOf(this.postgres.url));
  }

  private startGateway() {
    return startSandboxProcess({
      SANDBOX_LEDGER: join(this.folder, "ledger.jsonl"),
      SANDBOX_LATENCY_MS: "40",
      SANDBOX_JITTER_MS: "40",
      SANDBOX_IN_FLIGHT_MAX: "4",
    });
  }

  async restartGateway(): Promise<void> {
    killPid(this.gateway.pid);
    await pause(300);
    this.gateway = await this.startGateway();
    this.links.gateway.retarget(portOf(this.gateway.url));
  }

  async restartMails(): Promise<void> {
    killPid(this.mails.pid);
    await pause(300);
    this.mails = await startMailServer(this.mailsFolder);
    this.links.smtp.retarget(portOf(this.mails.url));
  }

  /** Settings of a service that reaches all of it by the links. */
  env(): Record<string, string> {
    const databaseUrl = new URL(this.postgres.url);
    databaseUrl.port = String(this.links.postgres.port);
    return {
      DATABASE_URL: databaseUrl.href,
      SANDBOX_GATEWAY_URL: `http://127.0.0.1:${this.links.gateway.port}`,
      SMTP_URL: `smtp://127.0.0.1:${this.links.smtp.port}`,
      DATA_DIR: this.folder,
      ADMIN_TOKEN,
      SHOPPER_TOKEN_SECRET: SECRET,
      GATEWAY_TIMEOUT_MS: "600",
      GATEWAY_OVERRUN_MS: "200",
      GATEWAY_LEASE_MS: "1000",
      RETRY_GRACE_MS: "3000",
      LOG_LEVEL: "info",
      ...withInspector(),
    };
  }
}

export const ROLES = ["api", "api", "worker", "worker"] as const;

/** The service's processes: who is killed is started again. */
export class Processes {
  readonly all: Process[] = [];
  private readonly outputs: Array<() => string> = [];
  private over = false;

  constructor(private readonly servers: Servers) {}

  async start(stops: Stops): Promise<void> {
    await this.startOne(0);
    await Promise.all([1, 2, 3].map((i) => this.startOne(i)));
    stops.push(() => this.stop());
  }

  api = (i: 0 | 1) => this.all[i] as Process;
  worker = (i: 0 | 1) => this.all[2 + i] as Process;
  /** What each of them printed, those that were killed too. */
  output = () => this.outputs.map((o) => o()).join("\n");

  private async startOne(i: number): Promise<void> {
    const { servers } = this;
    const link = servers.redisLinks[i % 2] as Link;
    const redisUrl = `redis://:${servers.redisPassword}@127.0.0.1:${link.port}`;
    const env = servers.env();
    const p = await startProcess(
      { env: (more = {}) => ({ ...env, ...more }) },
      { ROLE: ROLES[i] as string, REDIS_URL: redisUrl },
    );
    this.all[i] = p;
    this.outputs.push(() => `---- ${ROLES[i]} ${i}, process ${p.pid} ----\n${p.output()}`);
    void p.ended.then(async () => {
      if (this.over) return;
      await pause(200);
      await this.startOne(i).catch(() => {});
    });
  }

  private async stop(): Promise<void> {
    this.over = true;
    for (const p of this.all) p.kill("SIGCONT");
    for (const p of this.all) p.kill("SIGKILL");
    await Promise.all(this.all.map((p) => p.ended));
  }
}

/** Several links as one. */
function together(all: readonly Link[]): Links {
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
