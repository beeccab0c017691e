/**
 * kill -9 of every process of `npm start` in the middle of 64 parallel checkouts, five times, then started again; and
 * the same with FLUSHALL in the middle.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Redis } from "ioredis";
import { afterEach, beforeEach, expect, it } from "vitest";
import { freePort } from "../../src/local/processes.ts";
import { faultsOf } from "../books.ts";
import { inParallel, operator, pause, saleBodyOf, shopper, until } from "../support.ts";

const PROGRAM = fileURLToPath(new URL("../../src/fukubukuro.mjs", import.meta.url));
const TIMES = 5;
const SETTLED_MS_MAX = 60_000;
let dataDir: string;
let children: ChildProcess[] = [];
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), "fukubukuro-start-"));
});
afterEach(async () => {
  for (const child of children) child.kill("SIGKILL");
  children = [];
  await pause(2_000);
  await rm(dataDir, { recursive: true, force: true, maxRetries: 10, retryDelay: 300 });
});

async function start() {
  const child = spawn(process.execPath, [PROGRAM, "serve"], {
    env: {
      ...process.env,
      REDIS_URL: "",
      DATABASE_URL: "",
      DATA_DIR: dataDir,
      PORT: String(await freePort()),
      SANDBOX_LATENCY_MS: "300",
      SANDBOX_JITTER_MS: "100",
      SANDBOX_IN_FLIGHT_MAX: "8",
      GATEWAY_IN_FLIGHT_MAX: "8",
      GATEWAY_TIMEOUT_MS: "2000",
      GATEWAY_OVERRUN_MS: "500",
      GATEWAY_LEASE_MS: "3000",
      RETRY_GRACE_MS: "5000",
      MAIL_RATE_PER_S: "1000",
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  let out = "";
  child.stdout?.on("data", (d) => (out += d));
  child.stderr?.on("data", (d) => (out += d));
  await until(
    "the service to be ready",
    () => {
      if (child.exitCode !== null) throw new Error(out);
      return out.includes("Data is kept");
    },
    90_000,
  );
  const running = JSON.parse(await readFile(join(dataDir, "running.json"), "utf8")) as {
    redisUrl: string;
    databaseUrl: string;
    sandboxGatewayUrl: string;
  };
  return {
    child,
    url: /Shop\s+(\S+?)\/\n/.exec(out)?.[1] as string,
    token: /Admin token\s+(\S+)/.exec(out)?.[1] as string,
    running,
  };
}

/** Every process below this one, its servers and their guards. */
function family(pid: number): number[] {
  let children: number[] = [];
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);
  } catch {
    // it has ended
  }
  return [pid, ...children.flatMap(family)];
}

it.each([
  ["killed", false],
  ["Redis emptied in the middle, and killed", true],
])(
  "%s five times in the middle of 64 parallel checkouts: captured charges = orders + finished refunds, mails = orders, no unit lost",
  async (_, flush) => {
    let stack = await start();
    const secret = JSON.parse(readFileSync(join(dataDir, "secrets.json"), "utf8")).shopperTokenSecret as string;
    for (let n = 1; n <= TIMES; n++) {
      const sale = saleBodyOf({
        id: `crash-${n}`,
        holdMs: 8_000,
        items: [{ sku: "bag", name: "Bag", unitPrice: 500, stock: 64 }],
      });
      await operator(stack.url, stack.token).create(sale);
      const told = { confirmed: new Set<string>(), granted: 64 };
      const shopping = inParallel(
        64,
        Array.from({ length: 64 }, (_, i) => async () => {
          const s = shopper(stack.url, `s${n}-${i}`, secret);
          const held = await s.reserve(sale.id, "k").catch(() => null);
          const paid =
            held && (await s.confirm(held.body.id, i % 3 ? { token: "tok_ok" } : { gateway: "cod" }).catch(() => null));
          if (paid?.body.status === "confirmed") told.confirmed.add(paid.body.orderId as string);
        }),
      );
      await until(
        "some orders",
        async () => ((await operator(stack.url, stack.token).sale(sale.id)).items[0]?.sold ?? 0) >= 24,
        30_000,
      );
      if (flush) {
        const redis = new Redis(stack.running.redisUrl);
        await redis.flushall();
        redis.disconnect();
        await pause(700);
      }
      for (const pid of family(stack.child.pid as number)) {
        try {
          process.kill(pid, "SIGKILL");
        } catch {
          // it ended with its parent
        }
      }
      await shopping;
      stack = await start();
      const began = performance.now();
      const places = {
        ...stack.running,
        gatewayUrl: stack.running.sandboxGatewayUrl,
        mailsFolder: join(dataDir, "mails"),
      };
      let faults: string[] = [];
      await until(
        "the books to balance",
        async () => {
          faults = await faultsOf(places, sale.id, told);
          if (faults.length > 0) await pause(300);
          return faults.length === 0;
        },
        SETTLED_MS_MAX,
      ).catch(() => {});
      console.log(
        `${n} of ${TIMES}: ${told.confirmed.size} were told confirmed, settled ${Math.round(performance.now() - began)} ms after the start`,
      );
      expect(faults).toEqual([]);
      expect(told.confirmed.size).toBeGreaterThan(0);
      expect(told.confirmed.size).toBeLessThan(64);
    }
  },
  900_000,
);
