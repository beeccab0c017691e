/** Local mode: everything the service needs, on this machine, under one data folder. */

import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { nanoid } from "nanoid";
import type { Config } from "../config.ts";
import { ConfigError } from "../domain/errors.ts";
import { sandboxGatewayProgram } from "../places.ts";
import { type Mailbox, startMailbox } from "./mailbox.ts";
import { startPostgres } from "./postgres.ts";
import { freePort, runs, startGuarded } from "./processes.ts";
import { startRedis } from "./redis.ts";

/** Made at the first start and kept, so that tokens and data outlive a restart. */
interface Secrets {
  adminToken: string;
  shopperTokenSecret: string;
  postgresPassword: string;
}

/** Addresses of the running stack, for the other commands of the command line. */
interface Running {
  pid: number;
  redisUrl: string;
  databaseUrl: string;
  sandboxGatewayUrl: string | undefined;
}

export interface Local {
  config: Config;
  mailbox: Mailbox | null;
  /** Redis is private to this process: nobody else can have calls at a gateway under its permits. */
  alone: boolean;
  stop(): Promise<void>;
}

const GATEWAY_READY_MS = 20_000;

/**
 * Whether the stores are to be started here: neither is named. One without the other is a node of production that was
 * set up half, and must not open a demo shop under its real secrets. Throws ConfigError.
 */
export function needsLocal(c: Config): boolean {
  if (c.redisUrls && c.databaseUrl) return false;
  if (c.redisUrls)
    throw new ConfigError("REDIS_URL is set and DATABASE_URL is not: set both, or neither for local mode.");
  if (c.databaseUrl)
    throw new ConfigError("DATABASE_URL is set and REDIS_URL is not: set both, or neither for local mode.");
  if (c.production) throw new ConfigError("NODE_ENV is production: set REDIS_URL and DATABASE_URL.");
  return true;
}

async function readJson<T>(path: string): Promise<T | null> {
  try {
    return JSON.parse(await readFile(path, "utf8")) as T;
  } catch {
    return null;
  }
}

async function secretsOf(dataDir: string): Promise<Secrets> {
  const path = join(dataDir, "secrets.json");
  const kept = await readJson<Secrets>(path);
  if (kept) return kept;
  const made = { adminToken: nanoid(43), shopperTokenSecret: nanoid(43), postgresPassword: nanoid(32) };
  await mkdir(dataDir, { recursive: true });
  await writeFile(path, JSON.stringify(made, null, 2), { mode: 0o600, flag: "wx" });
  return made;
}

/** Tokens of local mode where none are set. */
export async function withSecrets(config: Config): Promise<Config> {
  const s = await secretsOf(config.dataDir);
  return {
    ...config,
    adminTokens: config.adminTokens ?? [s.adminToken],
    shopperTokenSecrets: config.shopperTokenSecrets ?? [s.shopperTokenSecret],
  };
}

/** The configuration of the stack that runs over this data folder, for a command beside it. */
export async function attach(config: Config): Promise<Config> {
  if (!needsLocal(config)) return config;
  const running = await readJson<Running>(join(config.dataDir, "running.json"));
  if (!running || !runs(running.pid, "fukubukuro"))
    throw new ConfigError(
      `Nothing runs over ${config.dataDir}: run npm start first, or set REDIS_URL and DATABASE_URL.`,
    );
  const { redisUrl, databaseUrl, sandboxGatewayUrl } = running;
  return withSecrets({
    ...config,
    redisUrls: config.redisUrls ?? [redisUrl],
    databaseUrl: config.databaseUrl ?? databaseUrl,
    sandboxGatewayUrl: config.sandboxGatewayUrl ?? sandboxGatewayUrl,
  });
}

/**
 * Starts what is not set: Redis, Postgres, the sandbox gateway, a mailbox. Stops again what it started if one of them
 * fails.
 */
export async function startLocal(given: Config, say: (line: string) => void): Promise<Local> {
  const dataDir = resolve(given.dataDir);
  await mkdir(dataDir, { recursive: true });
  const runningFile = join(dataDir, "running.json");
  const other = await readJson<Running>(runningFile);
  if (other && other.pid !== process.pid && runs(other.pid, "fukubukuro")) {
    throw new ConfigError(
      `Another Fukubukuro (process ${other.pid}) runs over ${given.dataDir}: stop it, or set DATA_DIR to another folder.`,
    );
  }
  const config = await withSecrets({ ...given, dataDir });
  const secrets = await secretsOf(dataDir);
  const stops: Array<() => Promise<unknown>> = [() => rm(runningFile, { force: true })];
  const stop = async () => {
    for (const s of stops.splice(0).reverse()) await s();
  };
  try {
    if (!config.redisUrls) {
      say("Redis ...");
      const redis = await startRedis(join(dataDir, "redis"), say);
      stops.push(redis.stop);
      config.redisUrls = [redis.url];
    }
    if (!config.databaseUrl) {
      say("Postgres ...");
      const postgres = await startPostgres(join(dataDir, "postgres"), { password: secrets.postgresPassword });
      stops.push(postgres.stop);
      config.databaseUrl = postgres.url;
    }
    if (config.gateways.includes("sandbox") && !config.sandboxGatewayUrl) {
      say("Sandbox gateway ...");
      const gateway = await startSandboxProcess({ SANDBOX_LEDGER: join(dataDir, "sandbox-ledger.jsonl") });
      stops.push(gateway.stop);
      config.sandboxGatewayUrl = gateway.url;
    }
    const mailbox = config.smtpUrl ? null : await startMailbox(join(dataDir, "mails"));
    if (mailbox) {
      stops.push(mailbox.close);
      config.smtpUrl = mailbox.url;
    }
    const port = await freePort(config.port, config.host);
    if (port !== config.port && config.port !== 0) say(`Port ${config.port} is taken; using ${port}.`);
    const running: Running = {
      pid: process.pid,
      redisUrl: config.redisUrls[0] as string,
      databaseUrl: config.databaseUrl,
      sandboxGatewayUrl: config.sandboxGatewayUrl,
    };
    await writeFile(runningFile, JSON.stringify(running), { mode: 0o600 });
    return { config: { ...config, port }, mailbox, alone: !given.redisUrls && !given.databaseUrl, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** The sandbox gateway as its own process; resolves with its address. */
export async function startSandboxProcess(
  env: Record<string, string>,
): Promise<{ url: string; pid: number; stop(): Promise<void> }> {
  let tell: (url: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const server = startGuarded("sandbox-gateway", sandboxGatewayProgram(), {
    signal: "TERM",
    env: { PORT: "0", ...env },
    onLine: (line) => line.startsWith("http://") && tell(line.trim()),
  });
  const late = new Promise<never>((_, reject) =>
    setTimeout(() => reject(new Error("the sandbox gateway did not start in time")), GATEWAY_READY_MS).unref(),
  );
  const url = await Promise.race([told, server.endedEarly, late]);
  return { url, pid: server.child.pid as number, stop: server.stop };
}
