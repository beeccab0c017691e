/**
 * The servers and the service of a rehearsal, in a folder of their own. What is struck down comes back at its port,
 * over its data.
 */
import { join } from "node:path";
import { Redis } from "ioredis";
import { nanoid } from "nanoid";
import { startMailbox } from "../local/mailbox.ts";
import { startPostgres } from "../local/postgres.ts";
import { freePort, type Guarded, kill, startGuarded } from "../local/processes.ts";
import { startRedis } from "../local/redis.ts";
import { startSandboxProcess } from "../local/stack.ts";
import { serviceProgram } from "../places.ts";

export const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

const newSecrets = () => ({ admin: nanoid(43), shopper: nanoid(43), redis: nanoid(), postgres: nanoid() });
const POSTGRES_TRIES_MAX = 30;

/** Who is killed and started again: `now` is the one that runs. */
interface Restartable<T> {
  now: T;
}
export interface Stack {
  folder: string;
  port: number;
  url: string;
  secrets: ReturnType<typeof newSecrets>;
  redis: Restartable<Awaited<ReturnType<typeof startRedis>>>;
  postgres: Restartable<Awaited<ReturnType<typeof startPostgres>>>;
  service: Restartable<Guarded>;
  gatewayUrl: string;
  mailboxUrl: string;
}

/** `stops` are filled as things start, so that what did start is stopped also when something else does not. */
export async function startStack(
  folder: string,
  stops: Array<() => Promise<unknown>>,
  say: (line: string) => void,
): Promise<Stack> {
  const secrets = newSecrets();
  const redis = { now: await startRedis(join(folder, "redis"), say, { password: secrets.redis }) };
  stops.push(() => redis.now.stop());
  const postgres = { now: await startPostgres(join(folder, "postgres"), { password: secrets.postgres }) };
  stops.push(() => postgres.now.stop());
  const gateway = await startSandboxProcess({
    SANDBOX_LEDGER: join(folder, "ledger.jsonl"),
    SANDBOX_LATENCY_MS: "250",
    SANDBOX_JITTER_MS: "150",
  });
  stops.push(gateway.stop);
  const mailbox = await startMailbox(join(folder, "mails"));
  stops.push(mailbox.close);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const servers = { folder, port, url, secrets, redis, postgres, gatewayUrl: gateway.url, mailboxUrl: mailbox.url };
  const service = { now: await startService(servers) };
  stops.push(() => service.now.stop());
  return { ...servers, service };
}

async function startService(s: Omit<Stack, "service">): Promise<Guarded> {
  const one = startGuarded("service", [...serviceProgram(), "serve"], {
    signal: "TERM",
    env: {
      PORT: String(s.port),
      HOST: "127.0.0.1",
      ROLE: "all",
      PROCESSES: "1",
      LOG_LEVEL: "silent",
      DATA_DIR: s.folder,
      ADMIN_TOKEN: s.secrets.admin,
      REDIS_URL: s.redis.now.url,
      DATABASE_URL: s.postgres.now.url,
      SANDBOX_GATEWAY_URL: s.gatewayUrl,
      SMTP_URL: s.mailboxUrl,
      SHOPPER_TOKEN_SECRET: s.secrets.shopper,
      GATEWAYS: "sandbox,cod",
      GATEWAY_TIMEOUT_MS: "1500",
      GATEWAY_OVERRUN_MS: "500",
      GATEWAY_LEASE_MS: "2500",
      RETRY_GRACE_MS: "4000",
    },
  });
  for (;;) {
    if ((await fetch(`${s.url}/readyz`).catch(() => null))?.ok) return one;
    await Promise.race([pause(100), one.endedEarly]);
  }
}

const strikeDown = (pid: number | undefined) => pid !== undefined && kill(-pid, "SIGKILL");

export async function killService(s: Stack): Promise<void> {
  strikeDown(s.service.now.child.pid);
  s.service.now = await startService(s);
}

export async function emptyRedis(s: Stack): Promise<void> {
  const client = new Redis(s.redis.now.url);
  await client.flushall();
  client.disconnect();
}

export async function killRedis(s: Stack, say: (line: string) => void): Promise<void> {
  const { pid, port } = s.redis.now;
  strikeDown(pid);
  s.redis.now = await startRedis(join(s.folder, "redis"), say, { password: s.secrets.redis, port });
}

export async function killPostgres(s: Stack): Promise<void> {
  const { pid, url } = s.postgres.now;
  strikeDown(pid);
  for (let tries = 0; ; tries++) {
    try {
      s.postgres.now = await startPostgres(join(s.folder, "postgres"), {
        password: s.secrets.postgres,
        port: Number(new URL(url).port),
      });
      return;
    } catch (error) {
      // Its backends hold the shared memory a little longer.
      if (tries > POSTGRES_TRIES_MAX) throw error;
      await pause(300);
    }
  }
}
