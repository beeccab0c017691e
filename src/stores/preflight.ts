/**
 * Settings of the stores that the promises depend on. A wrong one stops selling with a sentence that names it. An
 * operator may accept the risk by naming the setting in `ALLOW_UNSAFE`; each start then logs it as an error. Redis is
 * checked on every new connection, since a failover may lead to another instance; Postgres is checked at the start.
 */

import type { Logger } from "pino";
import type { Sql } from "postgres";
import type { UNSAFE_NAMES } from "../config.ts";
import { ConfigError } from "../domain/errors.ts";

export interface Unsafe {
  /** As in ALLOW_UNSAFE. */
  name: string;
  sentence: string;
}

const REDIS_MAJOR_MIN = 7;
const POSTGRES_MIN = 14;

/** `info`: sections server and replication; `settings`: CONFIG GET as an object, or null where it may not be read. */
export function unsafeRedis(info: string, settings: Record<string, string> | null): Unsafe[] {
  const field = (name: string) => new RegExp(`^${name}:(.*)$`, "m").exec(info)?.[1]?.trim() ?? "";
  const found: Unsafe[] = [];
  const unsafe = (name: (typeof UNSAFE_NAMES)[number], sentence: string) => void found.push({ name, sentence });
  const version = field("redis_version");
  if (Number.parseInt(version, 10) < REDIS_MAJOR_MIN)
    unsafe("redis-version", `Redis is version ${version}; ${REDIS_MAJOR_MIN} or newer is needed.`);
  if (field("role") !== "master")
    unsafe("redis-role", `REDIS_URL leads to a ${field("role")}: point it at the primary.`);
  if (!settings) {
    unsafe(
      "redis-config",
      "Redis does not let its settings be read (CONFIG GET): check appendonly, appendfsync and maxmemory-policy by hand.",
    );
    return found;
  }
  const { appendonly, appendfsync, maxmemory, "maxmemory-policy": policy } = settings;
  if (appendonly !== "yes")
    unsafe("appendonly", `Redis has appendonly ${appendonly}: a restart would lose every hold. Set appendonly yes.`);
  else if (appendfsync === "no")
    unsafe(
      "appendfsync",
      "Redis has appendfsync no: a crash would lose many seconds of holds. Set appendfsync always, or everysec.",
    );
  if (maxmemory !== "0" && policy !== "noeviction")
    unsafe(
      "maxmemory-policy",
      `Redis has maxmemory-policy ${policy}: it would throw stock away when memory is short. Set maxmemory-policy noeviction.`,
    );
  return found;
}

export async function unsafePostgres(sql: Sql): Promise<Unsafe[]> {
  const [row] = await sql<
    { version: number; recovery: boolean; synchronous_commit: string; fsync: string; full_page_writes: string }[]
  >`
    select current_setting('server_version_num')::int as version, pg_is_in_recovery() as recovery,
      current_setting('synchronous_commit') as synchronous_commit, current_setting('fsync') as fsync,
      current_setting('full_page_writes') as full_page_writes`;
  const found: Unsafe[] = [];
  const unsafe = (name: (typeof UNSAFE_NAMES)[number], sentence: string) => void found.push({ name, sentence });
  if (!row) return found;
  const major = Math.floor(row.version / 10_000);
  if (major < POSTGRES_MIN)
    unsafe("postgres-version", `Postgres is version ${major}; ${POSTGRES_MIN} or newer is needed.`);
  if (row.recovery)
    unsafe("postgres-recovery", "DATABASE_URL leads to a standby that is in recovery: point it at the primary.");
  if (row.synchronous_commit === "off")
    unsafe(
      "synchronous_commit",
      "Postgres has synchronous_commit off: a crash could lose an order that was told confirmed. Set it on.",
    );
  if (row.fsync === "off") unsafe("fsync", "Postgres has fsync off: a power cut could lose orders. Set it on.");
  if (row.full_page_writes === "off")
    unsafe("full_page_writes", "Postgres has full_page_writes off: a power cut could damage its tables. Set it on.");
  return found;
}

/** Logs what is allowed as an error; answers the sentence of the first that is not allowed, or null. */
export function refusalFor(found: Unsafe[], allowed: string[], log: Logger): string | null {
  let refusal: string | null = null;
  for (const u of found) {
    if (allowed.includes(u.name)) log.error({ unsafe: u.name }, `UNSAFE, and allowed by ALLOW_UNSAFE: ${u.sentence}`);
    else refusal ??= `${u.sentence} (Or accept the risk: ALLOW_UNSAFE=${u.name}.)`;
  }
  return refusal;
}

export function assertSafe(found: Unsafe[], allowed: string[], log: Logger): void {
  const refusal = refusalFor(found, allowed, log);
  if (refusal) throw new ConfigError(refusal);
}
