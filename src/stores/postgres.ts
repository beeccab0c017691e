/**
 * Postgres. The pool is ours: postgres.js (3.4) sends `rollback` on a connection that was lost inside a transaction,
 * which spoils it for good once it is connected again; it stops answering, or gives answers to the wrong question
 * (test/db.test.ts; found by a campaign). So each connection is a client of its own, used by one caller at a time, and
 * one that was lost is never used again.
 */
import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { migrate as runMigrations } from "drizzle-orm/postgres-js/migrator";
import postgres from "postgres";
import { MIGRATIONS_FOLDER } from "../places.ts";
import * as schema from "./schema.ts";

export type Db = PostgresJsDatabase<typeof schema>;
export type Tx = Parameters<Parameters<Db["transaction"]>[0]>[0];

export interface Postgres {
  db: Db;
  /** A connection of one's own for as long as `f` runs. */
  use<T>(f: (sql: postgres.Sql) => PromiseLike<T>): Promise<T>;
  close(): Promise<void>;
}

const CONNECTIONS_MAX = 20;
const STATEMENT_TIMEOUT_MS = 10_000;
const LOCK_TIMEOUT_MS = 5_000;
/** Longer than the server's own limit: only an answer that got lost takes so long. */
const ANSWER_MS_MAX = STATEMENT_TIMEOUT_MS + 2_000;
/** A transaction is a handful of statements; the longest is a rebuild's snapshot. */
const TRANSACTION_MS_MAX = 60_000;

/** The outcome is not known: it may have happened (its code begins like those of postgres.js for lost connections). */
class ConnectionLost extends Error {
  readonly code: string;
  constructor(code: "CONNECTION_CLOSED" | "CONNECTION_SILENT" | "CONNECTION_ENDED") {
    super(`the connection to Postgres: ${code}`);
    this.code = code;
  }
}

interface Connection {
  sql: postgres.Sql;
  lost: boolean;
  /** It was asked what it leads to. */
  checked: boolean;
  /**
   * Fails the use that is under way, if there is one. Not a promise that lasts as long as the connection: whatever
   * waits for one of those stays reachable through it, and with it every answer.
   */
  fail: ((error: Error) => void) | null;
}

function connect(url: string, onLost: (c: Connection) => void): Connection {
  const sql = postgres(url, {
    max: 1,
    connect_timeout: 5,
    idle_timeout: 0,
    max_lifetime: 0,
    // One question less per connection; no column here is an array.
    fetch_types: false,
    onnotice: () => {},
    onclose: () => {
      c.lost = true;
      c.fail?.(new ConnectionLost("CONNECTION_CLOSED"));
      onLost(c);
    },
    connection: {
      application_name: "fukubukuro",
      // No statement waits longer than a shopper would; a lost reply leaves the outcome unknown, which every caller
      // expects.
      statement_timeout: STATEMENT_TIMEOUT_MS,
      lock_timeout: LOCK_TIMEOUT_MS,
      idle_in_transaction_session_timeout: STATEMENT_TIMEOUT_MS,
    },
  });
  // Gives the client drizzle's own way of reading dates and JSON.
  drizzle(sql);
  const c: Connection = { sql, lost: false, checked: false, fail: null };
  return c;
}

export interface PoolOptions {
  connectionsMax?: number;
  answerMsMax?: number;
  transactionMsMax?: number;
  /** Asks a new connection what it leads to, before anyone uses it. */
  check?: (sql: postgres.Sql) => Promise<void>;
}

export function connectPostgres(url: string, o: PoolOptions = {}): Postgres {
  const { connectionsMax = CONNECTIONS_MAX, answerMsMax = ANSWER_MS_MAX, transactionMsMax = TRANSACTION_MS_MAX } = o;
  const check = o.check ?? (async () => {});
  const all = new Set<Connection>();
  const idle: Connection[] = [];
  let waiting: Array<{ take(c: Connection): void; fail(error: Error): void }> = [];
  let closed = false;

  function open(): Connection {
    const c = connect(url, forget);
    all.add(c);
    return c;
  }
  /** Lost: out of every list, and whoever waited for it gets a new one. */
  function forget(c: Connection): void {
    if (!all.delete(c)) return;
    const at = idle.indexOf(c);
    if (at >= 0) idle.splice(at, 1);
    void c.sql.end({ timeout: 0 }).catch(() => {});
    if (waiting.length > 0 && !closed) waiting.shift()?.take(open());
  }
  function acquire(): Promise<Connection> | Connection {
    if (closed) throw new ConnectionLost("CONNECTION_ENDED");
    // The one used last is the warmest.
    const c = idle.pop() ?? (all.size < connectionsMax ? open() : undefined);
    return c ?? new Promise((take, fail) => waiting.push({ take, fail }));
  }
  function release(c: Connection): void {
    if (c.lost || !all.has(c)) return;
    const next = waiting.shift();
    if (next) next.take(c);
    else idle.push(c);
  }

  /** postgres.js would connect a lost one again, to who knows where. */
  async function checked(c: Connection): Promise<void> {
    await check(c.sql);
    if (c.lost) throw new ConnectionLost("CONNECTION_CLOSED");
    c.checked = true;
  }

  async function use<T>(f: (sql: postgres.Sql) => PromiseLike<T>, msMax: number): Promise<T> {
    const c = await acquire();
    let timer: NodeJS.Timeout | undefined;
    try {
      // Settles once; what still comes of the work after that has nobody to tell.
      return await new Promise<T>((resolve, reject) => {
        // Lost between the pool and here: nothing is sent.
        if (c.lost) return reject(new ConnectionLost("CONNECTION_CLOSED"));
        c.fail = reject;
        timer = setTimeout(() => {
          c.lost = true;
          forget(c);
          reject(new ConnectionLost("CONNECTION_SILENT"));
        }, msMax);
        (c.checked ? f(c.sql) : checked(c).then(() => f(c.sql))).then(resolve, reject);
      });
    } finally {
      clearTimeout(timer);
      c.fail = null;
      release(c);
    }
  }

  /** What drizzle needs of a client. */
  const client = {
    options: { parsers: {}, serializers: {} },
    unsafe(text: string, parameters: never[], how?: postgres.UnsafeQueryOptions) {
      const rows = () => use((sql) => sql.unsafe(text, parameters, how), answerMsMax);
      return {
        // biome-ignore lint/suspicious/noThenProperty: drizzle awaits it or asks for values; only then is it sent
        then: (done: (rows: unknown) => void, failed: (error: unknown) => void) => rows().then(done, failed),
        values: () => use((sql) => sql.unsafe(text, parameters, how).values(), answerMsMax),
      };
    },
    begin: (f: (sql: postgres.TransactionSql) => Promise<unknown>) => use((sql) => sql.begin(f), transactionMsMax),
  };
  return {
    db: drizzle(client as unknown as postgres.Sql, { schema }),
    use: (f) => use(f, answerMsMax),
    async close() {
      closed = true;
      for (const w of waiting) w.fail(new ConnectionLost("CONNECTION_ENDED"));
      waiting = [];
      await Promise.all([...all].map((c) => c.sql.end({ timeout: 5 })));
    },
  };
}

/** Brings the tables up to date; several processes may do it at once. */
export async function migrate(url: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => {} });
  try {
    // One at a time over all processes; the number is ours by choice.
    await sql`select pg_advisory_lock(20270101)`;
    await runMigrations(drizzle(sql), { migrationsFolder: MIGRATIONS_FOLDER });
  } finally {
    await sql.end({ timeout: 5 });
  }
}
