/**
 * An older copy of a database in the place of the one that is in use, behind a link that is cut as a restore would cut
 * it.
 */
import postgres from "postgres";
import { startProxy } from "./proxy.ts";
import { makeWorld, type Running, type World } from "./support.ts";

export interface RestoreWorld extends World {
  /** Starts a service that reaches Postgres by the link. */
  serve(env?: Record<string, string>): Promise<Running>;
  /** A copy of the database as it is now. */
  copy(): Promise<void>;
  /**
   * The copy takes the place of the database, and every connection is cut; `change` is run in it before anyone
   * connects.
   */
  restore(change?: string): Promise<void>;
}

export async function makeRestoreWorld(): Promise<RestoreWorld> {
  const world = await makeWorld();
  const url = new URL(world.databaseUrl);
  const name = url.pathname.slice(1);
  const link = await startProxy(Number(url.port));
  const through = new URL(url);
  through.port = String(link.port);
  const admin = new URL(url);
  admin.pathname = "/postgres";
  /** While nobody is connected: neither copying nor renaming is done under anyone's feet. */
  async function alone(...statements: string[]): Promise<void> {
    const sql = postgres(admin.href, { max: 1, onnotice: () => {} });
    try {
      link.blackHole(true);
      link.cut();
      for (const at of [name, `${name}_old`])
        await sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = ${at}`;
      for (const s of statements) await sql.unsafe(s);
    } finally {
      link.blackHole(false);
      link.cut();
      await sql.end();
    }
  }
  return {
    ...world,
    serve: (env) => world.start({ DATABASE_URL: through.href, ...env }),
    copy: () => alone(`drop database if exists ${name}_old`, `create database ${name}_old template ${name}`),
    async restore(change) {
      const old = new URL(url);
      old.pathname = `/${name}_old`;
      if (change) {
        const sql = postgres(old.href, { max: 1, onnotice: () => {} });
        await sql.unsafe(change);
        await sql.end();
      }
      await alone(`drop database ${name}`, `alter database ${name}_old rename to ${name}`);
    },
    async close() {
      await world.close();
      await link.close();
    },
  };
}
