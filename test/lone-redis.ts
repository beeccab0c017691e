/** A Redis of the test file's own and the scripts on it, without a service. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll } from "vitest";
import { startRedis } from "../src/local/redis.ts";
import { connectRedis, type Redis } from "../src/stores/redis.ts";
import { makeScripts, type Scripts } from "../src/stores/scripts.ts";

export let redis: Redis;
export let scripts: Scripts;

/** To be called at the top of the file. */
export function useScripts(settings?: Parameters<typeof startRedis>[2]): void {
  let folder: string;
  let server: Awaited<ReturnType<typeof startRedis>>;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fukubukuro-scripts-"));
    server = await startRedis(folder, undefined, settings);
    redis = connectRedis([server.url], pino({ level: "silent" }));
    await redis.ready(5000);
    scripts = makeScripts(redis);
  });
  afterAll(async () => {
    await redis.close();
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  });
}
