/** The link to Redis: what was asked on one that fell silent must not pile up. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { expect, it } from "vitest";
import { startRedis } from "../src/local/redis.ts";
import { connectRedis } from "../src/stores/redis.ts";
import { startProxy } from "./proxy.ts";
import { until } from "./support.ts";

it("a link to Redis that falls silent is given up, and what waits in it is let go", async () => {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-link-"));
  const server = await startRedis(folder);
  const link = await startProxy(server.port);
  const url = new URL(server.url);
  url.port = String(link.port);
  const redis = connectRedis([url.href], pino({ level: "silent" }), ["fsync"]);
  try {
    await redis.ready(5_000);
    link.blackHole(true);
    const asked = Array.from({ length: 200 }, () =>
      redis.client.get("anything").catch((error: Error) => error.message),
    );
    // Not only each command in its time, which would leave all of them in the client's queue.
    await until("the link to be given up", () => redis.instance() === null);
    expect((await Promise.all(asked)).every((answer) => typeof answer === "string")).toBe(true);
    link.blackHole(false);
    await redis.ready(10_000);
    expect(await redis.client.get("anything")).toBe(null);
  } finally {
    await redis.close();
    await link.close();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  }
}, 60_000);
