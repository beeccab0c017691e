/** The pool of connections to Postgres: what was lost stays lost, and nobody waits for it. */
import { sql } from "drizzle-orm";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { connectPostgres, type Postgres } from "../src/db.ts";
import { isStoreAway } from "../src/routes.ts";
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
      Array.from({ length: 30 }, () => () => pool.db.transaction((tx) => tx.execute(sql`select 1 / 0`)).catch(() => {})),
    );
    await allAnswerRight();
    // Backends of lost connections end a moment later.
    await until("at most three", async () => {
      const rows = await pool.db.execute<{ n: number }>(sql`select count(*)::int as n from pg_stat_activity where datname = current_database()`);
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
