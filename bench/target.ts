/**
 * What is measured: a private stack of its own with its floors, or a service elsewhere; and the operator's calls to it.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nanoid } from "nanoid";
import { freePort, startGuarded } from "../src/local/processes.ts";
import { programOf } from "../src/places.ts";
import type { Audit } from "../src/recover/audit.ts";
import { inspect, keptLine } from "../test/heap.ts";
import { Wrong } from "./load.ts";

export interface Target {
  url: string;
  secret: string;
  admin: string;
  /** For the floors in Postgres and Redis; absent for a service elsewhere. */
  stores?: { databaseUrl: string; redisUrl: string };
  /**
   * What the service keeps after a collection, in one line; of several processes the one with the loops. Absent for a
   * service elsewhere.
   */
  memory?(): Promise<string>;
  stop(): Promise<unknown>;
}

export async function privateStack(processes: number, more: Record<string, string> = {}): Promise<Target> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-bench-"));
  let ready: (out: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    ready = resolve;
  });
  let out = "";
  const program = fileURLToPath(new URL("../src/fukubukuro.mjs", import.meta.url));
  // Its inspector is opened when it is asked for, after everything was measured, at a port that is free.
  const options = ["--max-semi-space-size=64", "--inspect-port=0"];
  const service = startGuarded("bench", [process.execPath, ...options, program, "serve"], {
    signal: "TERM",
    env: {
      DATA_DIR: folder,
      PORT: String(await freePort()),
      REDIS_URL: "",
      DATABASE_URL: "",
      PROCESSES: String(processes),
      CUSTOMER_RATE_PER_S: "100000",
      GATEWAY_LINE_MAX: "100000",
      SANDBOX_LATENCY_MS: "200",
      SANDBOX_JITTER_MS: "100",
      ...more,
    },
    onLine: (line) => {
      out += `${line}\n`;
      if (line.startsWith("Data is kept")) ready(out);
    },
  });
  const text = await Promise.race([told, service.endedEarly]);
  const read = async (file: string) => JSON.parse(await readFile(join(folder, file), "utf8")) as Record<string, string>;
  const running = await read("running.json");
  return {
    url: /Shop\s+(\S+?)\/\n/.exec(text)?.[1] as string,
    admin: /Admin token\s+(\S+)/.exec(text)?.[1] as string,
    secret: (await read("secrets.json")).shopperTokenSecret as string,
    stores: { databaseUrl: running.databaseUrl as string, redisUrl: running.redisUrl as string },
    async memory() {
      process.kill(Number(running.pid), "SIGUSR1");
      const listens = () => service.output().includes("Debugger listening");
      for (let waited = 0; !listens() && waited < 5_000; waited += 50) await new Promise((r) => setTimeout(r, 50));
      const inspector = await inspect(service.output());
      const kept = await inspector.kept();
      inspector.close();
      return keptLine("The service keeps", kept);
    },
    async stop() {
      await service.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** The floors as processes of their own, like the service: Hono's, and node's own server. */
export async function startFloor(
  server: "hono" | "node",
  stores: Target["stores"],
): Promise<{ url: string; stop(): Promise<unknown> }> {
  let tell: (url: string) => void = () => {};
  const told = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const command = [...programOf(new URL("./floor.ts", import.meta.url), ["--max-semi-space-size=64"]), server];
  const floor = startGuarded("floor", command, {
    signal: "TERM",
    env: { FLOOR_DATABASE_URL: stores?.databaseUrl ?? "", FLOOR_REDIS_URL: stores?.redisUrl ?? "" },
    onLine: tell,
  });
  return { url: await Promise.race([told, floor.endedEarly]), stop: floor.stop };
}

/** The operator of the service under load. */
export function operatorOf(target: Target) {
  async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const r = await fetch(`${target.url}/v1/admin${path}`, {
      method,
      headers: { authorization: `Bearer ${target.admin}`, "content-type": "application/json" },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    if (!r.ok) throw new Error(`${method} ${path}: ${r.status} ${await r.text()}`);
    return (await r.json()) as T;
  }
  return {
    call,
    async makeSale(stock: number, more: Record<string, unknown> = {}): Promise<string> {
      const now = Date.now();
      const id = `bench-${nanoid(8).replace(/[^A-Za-z0-9]/g, "x")}`;
      await call("POST", "/sales", {
        id,
        name: "Bench",
        currency: "JPY",
        holdMs: 3_600_000,
        maxUnitsPerCustomer: 100,
        gateways: ["cod"],
        opensAt: new Date(now - 60_000).toISOString(),
        closesAt: new Date(now + 86_400_000).toISOString(),
        items: [{ sku: "bag", name: "Bag", unitPrice: 10_000, stock }],
        ...more,
      });
      return id;
    },
    /** The books after a scenario: nothing oversold, every unit where it should be. */
    async checkBooks(saleId: string, expected: { held?: number; sold?: number }): Promise<void> {
      const until = Date.now() + 120_000;
      for (;;) {
        const a = await call<Audit>("GET", `/sales/${saleId}/audit`);
        const [item] = a.items;
        const settled = a.open.journalLag === 0 && a.open.paying === 0;
        if (
          a.ok &&
          settled &&
          item &&
          (expected.held ?? item.held) === item.held &&
          (expected.sold ?? item.sold) === item.sold
        )
          return;
        if (Date.now() > until) throw new Wrong(`the books of ${saleId} do not balance: ${JSON.stringify(a)}`);
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
    },
  };
}
export type Operator = ReturnType<typeof operatorOf>;
