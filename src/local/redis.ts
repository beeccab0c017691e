/** A private Redis (or Valkey) with its data in a folder of ours. */

import { execFileSync, spawnSync } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { nanoid } from "nanoid";
import { StartError } from "../domain/errors.ts";
import { makeClient } from "../stores/redis.ts";
import { endOrphan, freePort, startGuarded } from "./processes.ts";

export interface LocalServer {
  url: string;
  stop(): Promise<void>;
}

const READY_MS_MAX = 60_000;

function found(program: string): boolean {
  return spawnSync("sh", ["-c", `command -v ${program}`]).status === 0;
}

/** How each system's package manager installs it. */
const INSTALLS = [
  {
    manager: "apt-get",
    line: "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server",
  },
  { manager: "dnf", line: "dnf install -y redis || dnf install -y valkey" },
  { manager: "apk", line: "apk add redis" },
  { manager: "brew", line: "brew install redis" },
];

/**
 * The server's program; installs it when it is absent and that is permitted, else throws one sentence with the line to
 * run.
 */
export function redisProgram(say: (line: string) => void): string {
  const program = () => ["redis-server", "valkey-server"].find(found);
  const have = program();
  if (have) return have;
  const install = INSTALLS.find((i) => found(i.manager));
  if (!install)
    throw new StartError(
      "Redis is not installed and no known package manager was found: install redis-server 7 or newer, or set REDIS_URL.",
    );
  const root = process.getuid?.() === 0;
  const sudo = !root && install.manager !== "brew";
  const line = sudo ? `sudo sh -c '${install.line}'` : install.line;
  const permitted = !sudo || spawnSync("sudo", ["-n", "true"]).status === 0;
  if (!permitted) throw new StartError(`Redis is not installed. Run: ${line}`);
  say(`Redis is not installed; installing it: ${line}`);
  try {
    execFileSync("sh", ["-c", line], { stdio: ["ignore", "ignore", "inherit"] });
  } catch {
    throw new StartError(`Redis could not be installed. Run: ${line}`);
  }
  const now = program();
  if (!now) throw new StartError(`Redis was installed but redis-server is not on the path. Run: ${line}`);
  return now;
}

/** Starts it over `folder`; resolves when it answers. `port` keeps a restarted one at its address. */
export async function startRedis(
  folder: string,
  say: (line: string) => void = () => {},
  o: { port?: number; password?: string; fsync?: "always" | "everysec"; settings?: string[] } = {},
): Promise<LocalServer & { port: number; password: string; pid: number }> {
  const program = redisProgram(say);
  const dir = resolve(folder);
  await mkdir(dir, { recursive: true });
  const pidFile = join(dir, "redis.pid");
  const conf = join(dir, "redis.conf");
  await endOrphan(pidFile, conf, "SIGTERM");
  const port = o.port ?? (await freePort());
  const password = o.password ?? nanoid(32);
  const settings = [
    "bind 127.0.0.1",
    `port ${port}`,
    `requirepass ${password}`,
    "protected-mode yes",
    `dir "${dir}"`,
    `pidfile "${pidFile}"`,
    "daemonize no",
    "set-proc-title no",
    // Every acknowledged hold is on the disk; everysec lost a third of them on a slow disk
    // (docs/measurements.md#redis-durability).
    "appendonly yes",
    `appendfsync ${o.fsync ?? "always"}`,
    'save ""',
    "maxmemory-policy noeviction",
    "loglevel warning",
    ...(o.settings ?? []),
  ];
  await writeFile(conf, `${settings.join("\n")}\n`, { mode: 0o600 });
  const server = startGuarded("redis", [program, conf], { signal: "TERM" });
  const url = `redis://:${password}@127.0.0.1:${port}`;
  await Promise.race([answers(url), server.endedEarly]);
  return { url, port, password, pid: server.child.pid as number, stop: server.stop };
}

async function answers(url: string): Promise<void> {
  const client = makeClient([url]);
  client.on("error", () => {});
  client.connect().catch(() => {});
  try {
    for (const until = Date.now() + READY_MS_MAX; Date.now() < until; ) {
      // LOADING counts as not yet.
      if ((await client.ping().catch(() => "")) === "PONG") return;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    throw new StartError("Redis did not answer in time");
  } finally {
    client.disconnect();
  }
}
