/**
 * `npm run bench -- --start`: what the build saves at a start, in time and memory, beside the sources; both over the
 * same stores, in turns.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nanoid } from "nanoid";
import { startPostgres } from "../src/local/postgres.ts";
import { startRedis } from "../src/local/redis.ts";
import { startSandboxProcess } from "../src/local/stack.ts";
import { programOf } from "../src/places.ts";
import { median, Wrong } from "./load.ts";

const at = (path: string) => new URL(`../${path}`, import.meta.url);
const NODE_OPTIONS = ["--max-semi-space-size=64"];
const WAYS = {
  "the sources, through the loader": programOf(at("src/main.ts"), NODE_OPTIONS),
  "the build": [process.execPath, ...NODE_OPTIONS, fileURLToPath(at("dist/fukubukuro.js"))],
};
/** By then the loader's compiler is gone, and what a start threw away is collected or not. */
const SETTLED_MS = 3_000;
const READY_MS_MAX = 60_000;

interface Start {
  readyMs: number;
  /** Resident memory of the process and its children when it is ready, and a little later. */
  readyMb: number;
  settledMb: number;
}

const family = (pid: number): number[] => {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
  return [pid, ...children.map(Number).flatMap(family)];
};
const residentMb = (pid: number): number =>
  family(pid)
    .map((p) => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${p}/status`, "utf8"))?.[1] ?? 0) / 1024)
    .reduce((a, b) => a + b);

async function startOnce([program = "", ...args]: string[], env: Record<string, string>): Promise<Start> {
  const began = performance.now();
  const child = spawn(program, [...args, "serve"], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const late = setTimeout(() => child.kill("SIGKILL"), READY_MS_MAX);
  try {
    let log = "";
    await new Promise<void>((resolve, reject) => {
      child.stderr.on("data", (chunk) => {
        log += chunk;
        if (log.includes('"msg":"ready"')) resolve();
      });
      child.once("exit", () => reject(new Wrong(`the service did not start: ${log}`)));
    });
    const readyMs = performance.now() - began;
    const readyMb = residentMb(child.pid as number);
    await new Promise((resolve) => setTimeout(resolve, SETTLED_MS));
    return { readyMs, readyMb, settledMb: residentMb(child.pid as number) };
  } finally {
    clearTimeout(late);
    child.kill("SIGTERM");
    await ended;
  }
}

async function withStores(f: (env: Record<string, string>) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-starts-"));
  const stops: Array<() => Promise<unknown>> = [() => rm(folder, { recursive: true, force: true })];
  try {
    const redis = await startRedis(join(folder, "redis"));
    stops.push(redis.stop);
    const postgres = await startPostgres(join(folder, "postgres"), { password: nanoid() });
    stops.push(postgres.stop);
    const gateway = await startSandboxProcess({ SANDBOX_LEDGER: join(folder, "ledger.jsonl") });
    stops.push(gateway.stop);
    await f({
      REDIS_URL: redis.url,
      DATABASE_URL: postgres.url,
      SANDBOX_GATEWAY_URL: gateway.url,
      SHOPPER_TOKEN_SECRET: nanoid(32),
      ADMIN_TOKEN: nanoid(32),
      SMTP_URL: "smtp://127.0.0.1:1",
      LOG_LEVEL: "info",
      ROLE: "all",
      PROCESSES: "1",
      PORT: "0",
    });
  } finally {
    for (const stop of stops.reverse()) await stop();
  }
}

/** Prints medians of so many starts each, and the ratio of build to sources. */
export async function starts(rounds: number, print: (line: string) => void): Promise<void> {
  await withStores(async (env) => {
    const all = new Map<string, Start[]>(Object.keys(WAYS).map((name) => [name, []]));
    for (let n = 0; n < rounds; n++)
      for (const [name, command] of Object.entries(WAYS)) all.get(name)?.push(await startOnce(command, env));
    const figures = [...all].map(([name, found]) => {
      const of = (key: keyof Start) => median(found.map((s) => s[key]));
      return { name, readyMs: of("readyMs"), readyMb: of("readyMb"), settledMb: of("settledMb") };
    });
    for (const f of figures)
      print(
        `${f.name.padEnd(32)} ready after ${f.readyMs.toFixed(0)} ms with ${f.readyMb.toFixed(0)} MB; ${SETTLED_MS / 1000} s later ${f.settledMb.toFixed(0)} MB`,
      );
    const [sources, built] = figures;
    const ratio = (key: keyof Start) => ((built?.[key] ?? 0) / (sources?.[key] ?? 1)).toFixed(2);
    print(
      `The build takes ${ratio("readyMs")} of the time and ${ratio("readyMb")} of the memory (${ratio("settledMb")} later); medians of ${rounds} starts.`,
    );
  });
}
