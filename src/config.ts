/**
 * The only reader of the environment. A wrong setting throws a ConfigError whose message is one sentence that names it.
 */
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { z } from "zod";
import { ConfigError } from "./domain/errors.ts";

export const MAILS_FOLDER = "FUKUBUKURO_MAILS_FOLDER";
/**
 * Not an operator's settings: where a test wants this process to kill itself (crash-points.ts), and where an api
 * process finds the mails that its parent receives in local mode.
 */
export const told = { crash: process.env.FUKUBUKURO_CRASH, mailsFolder: process.env[MAILS_FOLDER] };

/** Settings of the stores that ALLOW_UNSAFE can name (stores/preflight.ts). */
export const UNSAFE_NAMES = [
  "redis-version",
  "redis-role",
  "redis-config",
  "appendonly",
  "appendfsync",
  "maxmemory-policy",
  "postgres-version",
  "postgres-recovery",
  "synchronous_commit",
  "fsync",
  "full_page_writes",
] as const;

const wholeMs = (fallback: number, min = 0, max = 7 * 86_400_000) =>
  z.coerce.number().int().min(min).max(max).default(fallback);
const whole = (fallback: number, min: number, max: number) =>
  z.coerce.number().int().min(min).max(max).default(fallback);
const list = (text: string) =>
  text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
const url = (protocols: string[]) =>
  z.string().refine(
    (text) => {
      try {
        return protocols.includes(new URL(text).protocol);
      } catch {
        return false;
      }
    },
    `must be a URL that begins with ${protocols.map((p) => `${p}//`).join(" or ")}`,
  );

const GUESSABLE = "can be guessed; make one with: openssl rand -base64 32";
/** Keeps out what people type in a hurry; it does not measure entropy. */
const isHardToGuess = (token: string) => new Set(token).size >= 8 && !/change.?me|password|12345678/i.test(token);

const GATEWAYS = ["sandbox", "cod"] as const;

const schema = z.object({
  PORT: whole(3000, 0, 65535),
  HOST: z.string().min(1).default("127.0.0.1"),
  NODE_ENV: z.string().optional(),
  REDIS_URL: z
    .string()
    .transform(list)
    .pipe(z.array(url(["redis:", "rediss:", "unix:"])).min(1))
    .optional(),
  DATABASE_URL: url(["postgres:", "postgresql:"]).optional(),
  DATA_DIR: z.string().min(1).default(".data"),
  ADMIN_TOKEN: z
    .string()
    .transform(list)
    .pipe(z.array(z.string().min(16, "needs at least 16 characters").refine(isHardToGuess, GUESSABLE)).min(1))
    .optional(),
  SHOPPER_TOKEN_SECRET: z
    .string()
    .transform(list)
    .pipe(z.array(z.string().min(16, "needs at least 16 characters")).min(1))
    .optional(),
  GATEWAYS: z
    .string()
    .default("sandbox,cod")
    .transform(list)
    .pipe(z.array(z.enum(GATEWAYS, `knows ${GATEWAYS.join(" and ")}`)).min(1)),
  SANDBOX_GATEWAY_URL: url(["http:", "https:"]).optional(),
  GATEWAY_IN_FLIGHT_MAX: z.string().default("4"),
  GATEWAY_TIMEOUT_MS: wholeMs(10_000, 50, 300_000),
  GATEWAY_OVERRUN_MS: wholeMs(5_000, 0, 300_000),
  GATEWAY_LEASE_MS: wholeMs(20_000, 100, 900_000),
  GATEWAY_LINE_MAX: whole(2_000, 1, 1_000_000),
  PAY_WAIT_MS_MAX: wholeMs(600_000, 100),
  RETRY_GRACE_MS: wholeMs(120_000, 0),
  ACTION_DEADLINE_MS: wholeMs(600_000, 100),
  SMTP_URL: url(["smtp:", "smtps:"]).optional(),
  MAIL_FROM: z.string().min(3).default("Fukubukuro <orders@fukubukuro.example>"),
  MAIL_RATE_PER_S: whole(50, 1, 10_000),
  CORS_ORIGINS: z.string().default("").transform(list),
  TRUSTED_PROXIES: whole(0, 0, 16),
  CUSTOMER_RATE_PER_S: whole(100, 1, 100_000),
  IN_FLIGHT_MAX: whole(5_000, 1, 100_000),
  BODY_BYTES_MAX: whole(16_384, 256, 1_048_576),
  ROLE: z.enum(["all", "api", "worker"], "knows all, api and worker").default("all"),
  ALLOW_UNSAFE: z
    .string()
    .default("")
    .transform(list)
    .pipe(z.array(z.enum(UNSAFE_NAMES, `knows ${UNSAFE_NAMES.join(", ")}`))),
  JOURNAL_MAX: whole(100_000, 100, 10_000_000),
  PROCESSES: z
    .string()
    .regex(/^(auto|[1-9]\d?)$/, "must be a number from 1 to 99, or auto")
    .default("1"),
  SWEEP_MS: wholeMs(250, 0, 60_000),
  LOG_LEVEL: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).optional(),
  SANDBOX_LATENCY_MS: wholeMs(800, 0, 120_000),
  SANDBOX_JITTER_MS: wholeMs(400, 0, 120_000),
  SANDBOX_IN_FLIGHT_MAX: whole(4, 1, 10_000),
  SANDBOX_LEDGER: z.string().min(1).optional(),
});

type Env = z.infer<typeof schema>;

export interface Config {
  port: number;
  host: string;
  /** NODE_ENV is production: nothing is started that is only for trying out. */
  production: boolean;
  redisUrls: string[] | undefined;
  databaseUrl: string | undefined;
  dataDir: string;
  adminTokens: string[] | undefined;
  shopperTokenSecrets: string[] | undefined;
  gateways: string[];
  sandboxGatewayUrl: string | undefined;
  gatewayInFlightMax: (gateway: string) => number;
  gatewayTimeoutMs: number;
  gatewayOverrunMs: number;
  gatewayLeaseMs: number;
  gatewayLineMax: number;
  payWaitMsMax: number;
  retryGraceMs: number;
  actionDeadlineMs: number;
  smtpUrl: string | undefined;
  mailFrom: string;
  mailRatePerS: number;
  corsOrigins: string[];
  trustedProxies: number;
  customerRatePerS: number;
  /** Reserves at work in one process; four times as many may pay or release, half as many read. */
  inFlightMax: number;
  bodyBytesMax: number;
  role: Env["ROLE"];
  allowUnsafe: string[];
  /** Journal entries of a sale that may wait for Postgres before nothing more is reserved. */
  journalMax: number;
  /** Api processes that share the port. 1 = this very process serves. */
  processes: number;
  /** 0 = no sweeper in this process; reserve still gives due holds back itself. */
  sweepMs: number;
  /** Not set: info, and warn where a person reads the output. */
  logLevel: Env["LOG_LEVEL"];
  sandbox: { latencyMs: number; jitterMs: number; inFlightMax: number; ledger: string | undefined };
}

/** `4`, or by gateway `sandbox=4,stripe=20`. */
function inFlightMax(text: string): (gateway: string) => number {
  const limits = new Map<string, number>();
  for (const part of list(text)) {
    const [, name = "", n = ""] = /^(?:([a-z]+)=)?(\d{1,5})$/.exec(part) ?? [];
    if (!n || Number(n) < 1)
      throw new ConfigError(
        `GATEWAY_IN_FLIGHT_MAX is "${text}": it must be a number such as 4, or by gateway such as sandbox=4.`,
      );
    limits.set(name, Number(n));
  }
  return (gateway) => limits.get(gateway) ?? limits.get("") ?? 4;
}

/**
 * Settings that may stand in a file of their own, named by e.g. ADMIN_TOKEN_FILE: how containers are given their
 * secrets.
 */
const MAY_BE_IN_A_FILE = ["ADMIN_TOKEN", "SHOPPER_TOKEN_SECRET", "REDIS_URL", "DATABASE_URL", "SMTP_URL"];

/** Settings with those that stand in files; one that is set itself wins. */
function withFiles(env: Record<string, string | undefined>): Record<string, string | undefined> {
  const all = { ...env };
  for (const name of MAY_BE_IN_A_FILE) {
    const file = env[`${name}_FILE`];
    if (!file || env[name]) continue;
    try {
      all[name] = readFileSync(file, "utf8").trim();
    } catch {
      throw new ConfigError(`${name}_FILE is "${file}": that file cannot be read.`);
    }
    if (!all[name]) throw new ConfigError(`${name}_FILE is "${file}": that file is empty.`);
  }
  return all;
}

/** Reads and checks the settings. Throws ConfigError. */
export function readConfig(env: Record<string, string | undefined> = process.env): Config {
  const given = Object.fromEntries(
    Object.entries(withFiles(env)).filter(
      ([name, value]) => name in schema.shape && value !== "" && value !== undefined,
    ),
  );
  const parsed = schema.safeParse(given);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const name = String(issue?.path[0]);
    const secret = /TOKEN|SECRET/.test(name);
    throw new ConfigError(
      `${name} is ${secret ? "set wrongly" : `"${given[name]}"`}: ${issue?.message.replace(/^Invalid input: /, "")}.`,
    );
  }
  const e = parsed.data;
  if (e.GATEWAY_LEASE_MS < e.GATEWAY_TIMEOUT_MS + e.GATEWAY_OVERRUN_MS) {
    throw new ConfigError(
      `GATEWAY_LEASE_MS is ${e.GATEWAY_LEASE_MS}: it must be at least GATEWAY_TIMEOUT_MS + GATEWAY_OVERRUN_MS (${e.GATEWAY_TIMEOUT_MS + e.GATEWAY_OVERRUN_MS}), or a call could outlive its permit.`,
    );
  }
  return {
    port: e.PORT,
    host: e.HOST,
    production: e.NODE_ENV === "production",
    redisUrls: e.REDIS_URL,
    databaseUrl: e.DATABASE_URL,
    dataDir: e.DATA_DIR,
    adminTokens: e.ADMIN_TOKEN,
    shopperTokenSecrets: e.SHOPPER_TOKEN_SECRET,
    gateways: e.GATEWAYS,
    sandboxGatewayUrl: e.SANDBOX_GATEWAY_URL,
    gatewayInFlightMax: inFlightMax(e.GATEWAY_IN_FLIGHT_MAX),
    gatewayTimeoutMs: e.GATEWAY_TIMEOUT_MS,
    gatewayOverrunMs: e.GATEWAY_OVERRUN_MS,
    gatewayLeaseMs: e.GATEWAY_LEASE_MS,
    gatewayLineMax: e.GATEWAY_LINE_MAX,
    payWaitMsMax: e.PAY_WAIT_MS_MAX,
    retryGraceMs: e.RETRY_GRACE_MS,
    actionDeadlineMs: e.ACTION_DEADLINE_MS,
    smtpUrl: e.SMTP_URL,
    mailFrom: e.MAIL_FROM,
    mailRatePerS: e.MAIL_RATE_PER_S,
    corsOrigins: e.CORS_ORIGINS,
    trustedProxies: e.TRUSTED_PROXIES,
    customerRatePerS: e.CUSTOMER_RATE_PER_S,
    inFlightMax: e.IN_FLIGHT_MAX,
    bodyBytesMax: e.BODY_BYTES_MAX,
    role: e.ROLE,
    allowUnsafe: e.ALLOW_UNSAFE,
    journalMax: e.JOURNAL_MAX,
    // One core is left to the worker and the stores.
    processes: e.PROCESSES === "auto" ? Math.max(1, availableParallelism() - 1) : Number(e.PROCESSES),
    sweepMs: e.SWEEP_MS,
    logLevel: e.LOG_LEVEL,
    sandbox: {
      latencyMs: e.SANDBOX_LATENCY_MS,
      jitterMs: e.SANDBOX_JITTER_MS,
      inFlightMax: e.SANDBOX_IN_FLIGHT_MAX,
      ledger: e.SANDBOX_LEDGER,
    },
  };
}

/** The environment for a child process that runs with these settings; it inherits whatever is not named here. */
export function settingsFor(c: Config): Record<string, string> {
  const given: Record<string, string | number | undefined> = {
    PORT: c.port,
    HOST: c.host,
    ROLE: c.role,
    PROCESSES: c.processes,
    REDIS_URL: c.redisUrls?.join(","),
    DATABASE_URL: c.databaseUrl,
    DATA_DIR: c.dataDir,
    ADMIN_TOKEN: c.adminTokens?.join(","),
    SHOPPER_TOKEN_SECRET: c.shopperTokenSecrets?.join(","),
    SANDBOX_GATEWAY_URL: c.sandboxGatewayUrl,
    SMTP_URL: c.smtpUrl,
    LOG_LEVEL: c.logLevel,
  };
  return Object.fromEntries(
    Object.entries(given).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]])),
  );
}
