/**
 * Once for the whole run: the package's client as it is published, and a Postgres of its own with a migrated template,
 * so that each test file gets a database in no time.
 */
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nanoid } from "nanoid";
import postgres from "postgres";
import type { TestProject } from "vitest/node";
import { startPostgres } from "../src/local/postgres.ts";
import { redisProgram } from "../src/local/redis.ts";
import { migrate } from "../src/stores/postgres.ts";

declare module "vitest" {
  interface ProvidedContext {
    postgresUrl: string;
  }
}

export default async function setup(project: TestProject) {
  redisProgram((line) => console.log(line));
  execFileSync("npm", ["run", "--silent", "build"], {
    cwd: new URL("..", import.meta.url),
    stdio: ["ignore", "ignore", "inherit"],
  });
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-test-"));
  // Nothing here must outlive a power cut, and many files share one disk.
  const server = await startPostgres(join(folder, "postgres"), {
    password: nanoid(),
    settings: ["fsync=off", "full_page_writes=off"],
  });
  const sql = postgres(server.url, { max: 1 });
  await sql`create database template_fukubukuro`;
  await sql.end();
  const template = new URL(server.url);
  template.pathname = "/template_fukubukuro";
  await migrate(template.href);
  project.provide("postgresUrl", server.url);
  return async () => {
    await server.stop();
    await rm(folder, { recursive: true, force: true });
  };
}
