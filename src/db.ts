import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { migrate as runMigrations } from "drizzle-orm/postgres-js/migrator";
import postgres from "postgres";
import * as schema from "./schema.ts";

export type Db = PostgresJsDatabase<typeof schema>;
export type Tx = Parameters<Parameters<Db["transaction"]>[0]>[0];

export interface Postgres {
  db: Db;
  sql: postgres.Sql;
  close(): Promise<void>;
}

const STATEMENT_TIMEOUT_MS = 10_000;
const LOCK_TIMEOUT_MS = 5_000;

export function connectPostgres(url: string, connectionsMax = 20): Postgres {
  const sql = postgres(url, {
    max: connectionsMax,
    connect_timeout: 5,
    idle_timeout: 0,
    onnotice: () => {},
    connection: {
      application_name: "fukubukuro",
      // No statement waits longer than a shopper would; a lost reply leaves the outcome unknown, which every caller expects.
      statement_timeout: STATEMENT_TIMEOUT_MS,
      lock_timeout: LOCK_TIMEOUT_MS,
      idle_in_transaction_session_timeout: STATEMENT_TIMEOUT_MS,
    },
  });
  return { db: drizzle(sql, { schema }), sql, close: () => sql.end({ timeout: 5 }) };
}

/** Brings the tables up to date; several processes may do it at once. */
export async function migrate(url: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => {} });
  try {
    // One at a time over all processes; the number is ours by choice.
    await sql`select pg_advisory_lock(20270101)`;
    await runMigrations(drizzle(sql), { migrationsFolder: new URL("../drizzle", import.meta.url).pathname });
  } finally {
    await sql.end({ timeout: 5 });
  }
}
