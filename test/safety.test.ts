/** Settings of the stores that break a promise stop selling; an override is possible and loud. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import postgres from "postgres";
import { describe, expect, inject, it } from "vitest";
import { startRedis } from "../src/local/redis.ts";
import { failuresMaxOf, makeBreaker } from "../src/stages/charge.ts";
import { unsafePostgres, unsafeRedis } from "../src/stores/preflight.ts";
import { connectRedis } from "../src/stores/redis.ts";
import { makeWorld, operator, shopper, until } from "./support.ts";

const GOOD = { appendonly: "yes", appendfsync: "always", maxmemory: "0", "maxmemory-policy": "noeviction" };
const INFO = "redis_version:7.2.4\r\nrole:master\r\n";
const names = (found: Array<{ name: string }>) => found.map((f) => f.name);

describe("Redis", () => {
  it.each([
    [INFO, GOOD, []],
    [INFO, { ...GOOD, appendfsync: "everysec" }, []],
    [INFO, { ...GOOD, maxmemory: "100mb" }, []],
    [INFO, { ...GOOD, maxmemory: "100mb", "maxmemory-policy": "allkeys-lru" }, ["maxmemory-policy"]],
    [INFO, { ...GOOD, appendonly: "no" }, ["appendonly"]],
    [INFO, { ...GOOD, appendfsync: "no" }, ["appendfsync"]],
    [INFO, null, ["redis-config"]],
    [INFO.replace("7.2.4", "6.2.1"), GOOD, ["redis-version"]],
    [INFO.replace("master", "slave"), GOOD, ["redis-role"]],
  ])("%#: is refused by name", (info, settings, wanted) => {
    const found = unsafeRedis(info, settings);
    expect(names(found)).toEqual(wanted);
    for (const f of found) expect(f.sentence).toMatch(/^[A-Z].*\.$/);
  });

  it("whose setting is changed to an unsafe one is not sold from after the next connection, until it is mended", async () => {
    const world = await makeWorld();
    try {
      const one = await world.start();
      const saleId = (await operator(one.url).create()).body.id;
      const s = shopper(one.url, "c");
      expect((await s.reserve(saleId, "a")).status).toBe(201);
      const admin = connectRedis([world.redis.url], pino({ level: "silent" }));
      await admin.ready(5_000);
      await admin.client.call("CONFIG", "SET", "maxmemory", "500mb", "maxmemory-policy", "allkeys-lru");
      await admin.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
      const refusal = await until("the setting to be seen", () => one.service.ctx.redis.refusal());
      expect(refusal).toMatch(/maxmemory-policy allkeys-lru.*ALLOW_UNSAFE=maxmemory-policy/);
      expect((await s.reserve(saleId, "b")).status).toBe(503);
      await admin.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction");
      await until("selling to go on", async () => (await s.reserve(saleId, "b")).status === 201);
      await admin.close();
    } finally {
      await world.close();
    }
  });

  it("without an append-only file stops the start with one sentence; ALLOW_UNSAFE lets it, and says so in the log", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-unsafe-"));
    const server = await startRedis(folder, undefined, { settings: ["appendonly no"] });
    const lines: string[] = [];
    const log = pino({ level: "error" }, { write: (line: string) => void lines.push(line) });
    const refused = connectRedis([server.url], log);
    await expect(refused.ready(500)).rejects.toThrow(/^Redis has appendonly no.*ALLOW_UNSAFE=appendonly/);
    const allowed = connectRedis([server.url], log, ["appendonly"]);
    await allowed.ready(5_000);
    expect(lines.join("")).toContain("UNSAFE, and allowed by ALLOW_UNSAFE");
    await Promise.all([refused.close(), allowed.close()]);
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  });
});

describe("Postgres", () => {
  it("with fsync or synchronous_commit off is refused by name", async () => {
    const sql = postgres(inject("postgresUrl"), { max: 1, onnotice: () => {} });
    // The server of the tests runs without fsync on purpose.
    expect(names(await unsafePostgres(sql))).toEqual(["fsync", "full_page_writes"]);
    await sql`set synchronous_commit = off`;
    expect(names(await unsafePostgres(sql))).toEqual(["synchronous_commit", "fsync", "full_page_writes"]);
    await sql.end();
  });

  it("that is unsafe stops the start", async () => {
    const world = await makeWorld();
    await expect(world.start({ ALLOW_UNSAFE: "fsync" })).rejects.toThrow(/full_page_writes off/);
    await world.close();
  });
});

describe("the breaker of a gateway", () => {
  it("opens after five calls in a row without a definite answer, then lets one try alone, and closes by any definite answer", () => {
    const breaker = makeBreaker(5, 10_000);
    for (let i = 0; i < 4; i++) breaker.heard({ outcome: "not_done", why: "away" });
    expect([breaker.waitMs(), breaker.width(4)]).toEqual([0, 4]);
    breaker.heard({ outcome: "unknown", why: "timeout", answered: false });
    expect(breaker.waitMs()).toBeGreaterThan(9_000);
    expect(breaker.width(4)).toBe(1);
    breaker.heard({ outcome: "declined", declineCode: "card_declined", chargeId: null });
    expect(breaker.width(4)).toBe(4);
  });

  it("does not open by single failures among good answers of calls side by side, and does by two rounds of failures", () => {
    const breaker = makeBreaker(failuresMaxOf(4), 10_000);
    const lost = { outcome: "unknown", why: "502", answered: true } as const;
    // Four at once, one of which was answered well, over and over.
    for (let round = 0; round < 50; round++) {
      for (let i = 0; i < 3; i++) breaker.heard(lost);
      breaker.heard({ outcome: "declined", declineCode: "card_declined", chargeId: null });
      for (let i = 0; i < 3; i++) breaker.heard(lost);
    }
    expect(breaker.waitMs()).toBe(0);
    for (let i = 0; i < 8; i++) breaker.heard(lost);
    expect(breaker.waitMs()).toBeGreaterThan(0);
  });
});
