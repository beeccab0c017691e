/** The pool of connections to Postgres: what was lost stays lost, and nobody waits for it. */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/postgres-js";
import { migrate as runMigrations } from "drizzle-orm/postgres-js/migrator";
import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { isStoreAway } from "../src/http/answers.ts";
import { connectPostgres, migrate, type Postgres } from "../src/stores/postgres.ts";
import { type Link, startProxy } from "./proxy.ts";
import { inParallel, makeDatabase, until } from "./support.ts";

let link: Link;
let pool: Postgres;
let drop: () => Promise<void>;
beforeAll(async () => {
  const database = await makeDatabase();
  drop = database.drop;
  const url = new URL(database.url);
  link = await startProxy(Number(url.port));
  url.port = String(link.port);
  // Fewer connections than callers, so that a spoilt one would be met soon.
  pool = connectPostgres(url.href, { connectionsMax: 3, answerMsMax: 1_500, transactionMsMax: 2_500 });
});
afterAll(async () => {
  await pool.close();
  await link.close();
  await drop();
});

const number = async (n: number) => (await pool.db.execute<{ n: number }>(sql`select ${n}::int as n`))[0]?.n;
/** Each caller gets its own answer, however many ask at once. */
async function allAnswerRight(): Promise<void> {
  const asked = Array.from({ length: 60 }, (_, i) => i);
  expect(
    await inParallel(
      20,
      asked.map((n) => () => number(n)),
    ),
  ).toEqual(asked);
}
const running = (text: string) =>
  until(`a running ${text}`, async () => {
    const rows = await pool.db.execute<{ n: number }>(
      sql`select count(*)::int as n from pg_stat_activity where query like ${`%${text}%`} and state = 'active'`,
    );
    return (rows[0]?.n ?? 0) > 0;
  });

describe("a connection", () => {
  it("that is lost in the middle of a transaction ends the transaction at once and is not used again", async () => {
    for (let round = 0; round < 6; round++) {
      const inside = pool.db.transaction(async (tx) => {
        await tx.execute(sql`select pg_sleep(5) /* doomed */`);
      });
      inside.catch(() => {});
      await running("doomed");
      link.cut();
      const error = await inside.then(
        () => null,
        (e) => e,
      );
      expect(isStoreAway(error), String(error)).toBe(true);
      // The other links were cut too, and the first caller of each may meet that.
      await until("answers", () => number(round).then((n) => n === round));
      await until("the rest to be new", () => allAnswerRight().then(() => true));
    }
  });

  it("that falls silent is given up after its time, and the next caller has another one", async () => {
    await allAnswerRight();
    link.blackHole(true);
    const [alone, together] = await Promise.all(
      [number(1), pool.db.transaction((tx) => tx.execute(sql`select 1`))].map((p) =>
        p.then(
          () => null,
          (e) => e,
        ),
      ),
    );
    expect([isStoreAway(alone), isStoreAway(together)]).toEqual([true, true]);
    link.blackHole(false);
    await until("answers again", () => number(2).then((n) => n === 2));
    await allAnswerRight();
  });

  it("is one of a bounded number, and what a transaction refuses leaves it whole", async () => {
    await inParallel(
      30,
      Array.from(
        { length: 30 },
        () => () => pool.db.transaction((tx) => tx.execute(sql`select 1 / 0`)).catch(() => {}),
      ),
    );
    await allAnswerRight();
    // Backends of lost connections end a moment later.
    await until("at most three", async () => {
      const rows = await pool.db.execute<{ n: number }>(
        sql`select count(*)::int as n from pg_stat_activity where datname = current_database()`,
      );
      return (rows[0]?.n ?? 9) <= 3;
    });
  });

  it("is waited for by nobody once the pool is closed", async () => {
    const database = await makeDatabase();
    const other = connectPostgres(database.url, { connectionsMax: 1 });
    const slow = other.db.execute(sql`select pg_sleep(0.2)`);
    const waiting = other.db.execute(sql`select 1`).then(
      () => null,
      (e) => e,
    );
    await slow;
    await other.close();
    expect((await waiting) === null || isStoreAway(await waiting)).toBe(true);
    expect(
      isStoreAway(
        await other.db.execute(sql`select 1`).then(
          () => null,
          (e) => e,
        ),
      ),
    ).toBe(true);
    await database.drop();
  });
});

describe("an older database", () => {
  /** The tables as a release with so many migrations made them. */
  async function asOf(migrations: number): Promise<{ url: string; drop(): Promise<void> }> {
    const database = await makeDatabase();
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-drizzle-"));
    const client = postgres(database.url, { max: 1, onnotice: () => {} });
    try {
      await cp(fileURLToPath(new URL("../drizzle", import.meta.url)), folder, { recursive: true });
      const journal = join(folder, "meta", "_journal.json");
      const all = JSON.parse(await readFile(journal, "utf8"));
      await writeFile(journal, JSON.stringify({ ...all, entries: all.entries.slice(0, migrations) }));
      await client.unsafe("drop schema public cascade; drop schema drizzle cascade; create schema public");
      await runMigrations(drizzle(client), { migrationsFolder: folder });
    } finally {
      await client.end();
      await rm(folder, { recursive: true });
    }
    return database;
  }

  it("is brought up to date with every hold, order and mail that it has", async () => {
    const database = await asOf(2);
    const client = postgres(database.url, { max: 1, onnotice: () => {} });
    const reference = "A".repeat(26);
    await client.unsafe(`
      insert into sales (id, name, currency, opens_at, closes_at, hold_ms, max_units_per_customer, gateways, shipping_fee, created_from)
        values ('s', 'S', 'JPY', now(), now(), 1000, 1, '["cod"]', 0, '');
      insert into reservations (id, sale_id, key, customer_id, state, lines, reference, deadline_ms, epoch, seq, held_at, changed_at)
        values ('rsv_1.0.kkk', 's', 'kkk', 'c', 'c', 'bag:1', '${reference}', 1, 1, 1, now(), now());
      insert into orders (id, reservation_id, reference, sale_id, customer_id, amount, currency, gateway, contact, confirmed_at)
        values ('ord_${reference}', 'rsv_1.0.kkk', '${reference}', 's', 'c', 1, 'JPY', 'cod', '{}', now());
      insert into order_lines (order_id, sale_id, sku, name, quantity, unit_price) values ('ord_${reference}', 's', 'bag', 'Bag', 1, 1);
      insert into outbox (order_id, kind, sale_id, language) values ('ord_${reference}', 'confirmation', 's', 'ja')`);
    await migrate(database.url);
    expect(await client`select sale_id, key, state from reservations`).toMatchObject([
      { sale_id: "s", key: "kkk", state: "c" },
    ]);
    expect(
      await client`select o.reference, l.sku, b.kind
        from orders o join order_lines l on l.order_id = o.id join outbox b on b.order_id = o.id`,
    ).toMatchObject([{ reference, sku: "bag", kind: "confirmation" }]);
    await client.end();
    await database.drop();
  });
});
