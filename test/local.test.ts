/** The command line and the local stack, as a person on a bare machine meets them. */

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readConfig } from "../src/config.ts";
import { ConfigError } from "../src/domain/errors.ts";
import { freePort, runs, startGuarded } from "../src/local/processes.ts";
import { startSandboxProcess } from "../src/local/stack.ts";
import { call, inParallel, operator, saleBodyOf, shopper, until } from "./support.ts";

const PROGRAM = fileURLToPath(new URL("../src/fukubukuro.mjs", import.meta.url));
let dataDir: string;
const children: Array<ReturnType<typeof spawn>> = [];
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), "fukubukuro-local-"));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  await until("every server to be gone", async () => (await serversOf(dataDir)).length === 0);
  await rm(dataDir, { recursive: true, force: true });
});

/** Pids of the servers whose command lines name this data folder. */
async function serversOf(folder: string): Promise<number[]> {
  const pids: number[] = [];
  for (const file of [join(folder, "redis", "redis.pid"), join(folder, "postgres", "postmaster.pid")]) {
    const pid = Number((await readFile(file, "utf8").catch(() => "")).split("\n")[0]);
    if (pid && runs(pid, folder)) pids.push(pid);
  }
  return pids;
}

const environment = (env: Record<string, string>) => {
  const { REDIS_URL: _r, DATABASE_URL: _d, ...rest } = process.env;
  return {
    ...rest,
    DATA_DIR: dataDir,
    SANDBOX_LATENCY_MS: "50",
    SANDBOX_JITTER_MS: "20",
    GATEWAY_TIMEOUT_MS: "2000",
    GATEWAY_OVERRUN_MS: "500",
    GATEWAY_LEASE_MS: "3000",
    ...env,
  };
};

function run(
  args: string[],
  env: Record<string, string> = {},
): Promise<{ code: number | null; out: string; err: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [PROGRAM, ...args], {
      env: environment(env),
      stdio: ["ignore", "pipe", "pipe"],
    });
    children.push(child);
    let [out, err] = ["", ""];
    child.stdout.on("data", (d) => (out += d));
    child.stderr.on("data", (d) => (err += d));
    child.once("close", (code) => resolve({ code, out, err }));
  });
}

async function start(env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [PROGRAM, "serve"], {
    env: environment({ PORT: String(await freePort()), ...env }),
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  let out = "";
  child.stdout.on("data", (d) => (out += d));
  child.stderr.on("data", (d) => (out += d));
  const ended = new Promise<number | null>((resolve) => child.once("exit", (code) => resolve(code)));
  await until(
    "the service to be ready",
    () => {
      if (child.exitCode !== null) throw new Error(out);
      return out.includes("Ready in");
    },
    60_000,
  );
  const url = /Shop\s+(\S+?)\/\n/.exec(out)?.[1] as string;
  const token = /Admin token\s+(\S+)/.exec(out)?.[1] as string;
  return { child, url, token, ended, out: () => out };
}

describe("a server of local mode", () => {
  it("that ends at once is told with the reason it printed, however busy the machine is", async () => {
    const reasons = await inParallel(
      40,
      Array.from({ length: 40 }, () => async () => {
        const server = startGuarded("ends", ["sh", "-c", "sleep 0.05; echo the reason >&2; exit 1"], {
          signal: "TERM",
        });
        return server.endedEarly.catch((error: Error) => error.message);
      }),
    );
    expect(reasons.filter((r) => !r.includes("the reason"))).toEqual([]);
  });
});

describe("npm start", () => {
  it("starts everything, sells a bag, and after Ctrl-C leaves no process; a second start has the same token, sale and order", async () => {
    const first = await start();
    expect(first.out()).toMatch(/Redis[\s\S]*Postgres[\s\S]*Sandbox gateway[\s\S]*Ready/);
    const secret = JSON.parse(readFileSync(join(dataDir, "secrets.json"), "utf8")).shopperTokenSecret as string;
    const s = shopper(first.url, "c1", secret);
    const { id } = (await s.reserve("demo", "k", [{ sku: "bag-m", quantity: 1 }])).body;
    const orderId = (await s.confirm(id)).body.orderId as string;
    await until("the order", async () => (await s.order(orderId)).status === 200);
    const held = (await s.reserve("demo", "k2", [{ sku: "bag-s", quantity: 1 }])).body.id;
    expect((await serversOf(dataDir)).length).toBe(2);
    const gatewayUrl = /Gateway\s+(\S+)/.exec(first.out())?.[1] as string;
    first.child.kill("SIGINT");
    expect(await first.ended).toBe(0);
    expect(await serversOf(dataDir)).toEqual([]);
    await expect(fetch(`${gatewayUrl}/stats`)).rejects.toThrow();

    const second = await start();
    expect(second.token).toBe(first.token);
    const again = shopper(second.url, "c1", secret);
    expect((await again.order(orderId)).status).toBe(200);
    expect((await again.read(held)).body.status).toBe("held");
    expect(await operator(second.url, second.token).audit("demo")).toMatchObject({
      ok: true,
      charges: { captured: 1 },
      orders: { recorded: 1 },
    });
    second.child.kill("SIGTERM");
    expect(await second.ended).toBe(0);
  });

  it("killed with -9 in the middle of 64 parallel checkouts, servers and all: after the next start every charge has its order and the books balance", async () => {
    const first = await start({ SANDBOX_IN_FLIGHT_MAX: "8", GATEWAY_IN_FLIGHT_MAX: "8", SANDBOX_LATENCY_MS: "400" });
    const secret = JSON.parse(readFileSync(join(dataDir, "secrets.json"), "utf8")).shopperTokenSecret as string;
    const op = operator(first.url, first.token);
    await op.post("/sales", saleBodyOf({ id: "crash", items: [{ sku: "bag", name: "b", unitPrice: 500, stock: 64 }] }));
    const told = inParallel(
      64,
      Array.from({ length: 64 }, (_, i) => async () => {
        try {
          const s = shopper(first.url, `crash${i}`, secret);
          const r = await s.reserve("crash", "k");
          const paid = await s.confirm(r.body.id, i % 3 ? { token: "tok_ok" } : { gateway: "cod" });
          return paid.status === 200 ? (paid.body.orderId as string) : null;
        } catch {
          return null; // the process was killed while we waited
        }
      }),
    );
    await until("some orders", async () => ((await op.sale("crash")).items[0]?.sold ?? 0) >= 25);
    const pids = await serversOf(dataDir);
    process.kill(first.child.pid as number, "SIGKILL");
    for (const pid of pids) process.kill(pid, "SIGKILL");
    const confirmed = (await told).filter((id) => id !== null);
    expect(confirmed.length).toBeGreaterThan(0);
    expect(confirmed.length).toBeLessThan(64);

    const second = await start({ SANDBOX_IN_FLIGHT_MAX: "8", GATEWAY_IN_FLIGHT_MAX: "8" });
    const after = operator(second.url, second.token);
    const audit = await until(
      "everything to be settled",
      async () => {
        const a = await after.audit("crash");
        return a.ok && a.open.paying === 0 && a.open.journalLag === 0 && a.mails.queued === 0 && a;
      },
      60_000,
    );
    const cod = (
      await after.get<{ orders: Array<{ id: string; payment: { gateway: string } }> }>("/orders?saleId=crash&limit=200")
    ).body.orders;
    expect(audit.charges.captured).toBe(cod.filter((o) => o.payment.gateway === "sandbox").length);
    // P8: whoever was told "confirmed" has an order.
    for (const id of confirmed) expect(cod.map((o) => o.id)).toContain(id);
    expect(audit.mails).toMatchObject({ sent: audit.orders.recorded, withoutOrder: 0 });
    second.child.kill("SIGTERM");
    await second.ended;
  }, 150_000);

  it("killed with -9 alone leaves no server behind", async () => {
    const { child, ended } = await start();
    expect((await serversOf(dataDir)).length).toBe(2);
    child.kill("SIGKILL");
    await ended;
    await until("the servers to stop by themselves", async () => (await serversOf(dataDir)).length === 0);
  });

  it("with PROCESSES=2 two processes share the port: one that is killed is replaced, figures add up, and Ctrl-C leaves none", async () => {
    const { child, url, token, ended } = await start({ PROCESSES: "2" });
    const children = async () =>
      (await readFile(`/proc/${child.pid}/task/${child.pid}/children`, "utf8")).trim().split(" ").map(Number);
    const apis = async () =>
      (await children()).filter((pid) => runs(pid, "dist/fukubukuro.js") || runs(pid, "src/fukubukuro.mjs"));
    expect(await apis()).toHaveLength(2);
    const secret = JSON.parse(readFileSync(join(dataDir, "secrets.json"), "utf8")).shopperTokenSecret as string;
    await operator(url, token).post(
      "/sales",
      saleBodyOf({ id: "two", items: [{ sku: "bag", name: "b", unitPrice: 500, stock: 20 }] }),
    );
    const buyers = Array.from({ length: 40 }, (_, i) => shopper(url, `two${i}`, secret));
    const held = (
      await inParallel(
        20,
        buyers.map((s) => () => s.reserve("two", "k")),
      )
    ).filter((r) => r.status === 201);
    expect(held).toHaveLength(20);
    // The next connection goes to the other process: both must tell of all 40.
    for (let i = 0; i < 2; i++) {
      const text = String((await call(`${url}/metrics`, { headers: { connection: "close" } })).body);
      const counts = [
        ...text.matchAll(
          /^fukubukuro_http_requests_total\{route="\/v1\/sales\/\{saleId\}\/reservations",status="\d+"\} (\d+)$/gm,
        ),
      ];
      expect(counts.reduce((n, [, count]) => n + Number(count), 0)).toBe(40);
    }
    const [killed] = (await apis()) as [number];
    process.kill(killed, "SIGKILL");
    await until("another one in its place", async () => {
      const now = await apis();
      return now.length === 2 && !now.includes(killed);
    });
    const paid = await until("an answer", () => buyers[0]?.confirm(held[0]?.body.id as string, { gateway: "cod" }));
    expect([paid.status, paid.body.code]).not.toContain("INTERNAL_ERROR");
    child.kill("SIGINT");
    expect(await ended).toBe(0);
    expect(await serversOf(dataDir)).toEqual([]);
    await expect(fetch(`${url}/healthz`)).rejects.toThrow();
  });

  it("takes the next free port when its own is taken, and says so", async () => {
    const blocker = createServer();
    await new Promise<void>((resolve) => blocker.listen(0, "127.0.0.1", resolve));
    const port = (blocker.address() as { port: number }).port;
    const { url, out, child, ended } = await start({ PORT: String(port) });
    expect(out()).toContain(`Port ${port} is taken`);
    expect(Number(new URL(url).port)).toBeGreaterThan(port);
    const other = await run(["serve"]);
    expect([other.code, other.err]).toEqual([1, expect.stringContaining("Another Fukubukuro")]);
    child.kill("SIGINT");
    await ended;
    blocker.close();
  });
});

describe("the command line", () => {
  it("has --help for every command", async () => {
    const all = await run(["--help"]);
    for (const command of ["serve", "token", "audit", "reconcile", "rebuild", "sale"])
      expect(all.out).toContain(command);
    expect((await run(["sale", "create", "--help"])).out).toContain("POST /v1/admin/sales");
    expect((await run(["nonsense"])).code).toBe(1);
  });

  it("works beside a running service: token, sale create, audit with its exit code, reconcile, rebuild; and says so where nothing runs", async () => {
    const { url, child, ended } = await start();
    const token = (await run(["token", "--customer", "c9"])).out.trim();
    expect(
      (await call(`${url}/v1/sales/demo/reservations`, { headers: { authorization: `Bearer ${token}` } })).status,
    ).toBe(200);
    const file = join(dataDir, "sale.json");
    await (await import("node:fs/promises")).writeFile(file, JSON.stringify(saleBodyOf({ id: "from-file" })));
    expect(JSON.parse((await run(["sale", "create", file])).out)).toEqual({ id: "from-file", created: true });
    expect((await call(`${url}/v1/sales/from-file`)).status).toBe(200);
    const audit = await run(["audit", "--sale", "from-file"]);
    expect([audit.code, JSON.parse(audit.out)[0].ok]).toEqual([0, true]);
    expect(JSON.parse((await run(["reconcile"])).out)).toMatchObject({ lookedUp: 0 });
    expect(JSON.parse((await run(["rebuild", "--sale", "demo"])).out)).toMatchObject({ outcome: "HEALTHY" });
    expect((await run(["audit", "--sale", "none"])).err).toContain("There is no sale none");
    child.kill("SIGINT");
    await ended;
    expect((await run(["audit"])).err).toContain("npm start first");
  });

  it.each([
    [{ PORT: "http" }, "PORT"],
    [{ REDIS_URL: "localhost:6379" }, "REDIS_URL"],
    [{ DATABASE_URL: "mysql://x" }, "DATABASE_URL"],
    [{ GATEWAYS: "paypall" }, "GATEWAYS"],
    [{ GATEWAY_LEASE_MS: "100" }, "GATEWAY_LEASE_MS"],
    [{ GATEWAY_IN_FLIGHT_MAX: "four" }, "GATEWAY_IN_FLIGHT_MAX"],
    [{ ADMIN_TOKEN: "short" }, "ADMIN_TOKEN"],
    [{ ROLE: "boss" }, "ROLE"],
    [{ PROCESSES: "0" }, "PROCESSES"],
    [{ LOG_LEVEL: "loud" }, "LOG_LEVEL"],
  ])("a wrong setting %j stops the start with one sentence that names it", async (env, name) => {
    expect(() => readConfig(env)).toThrow(ConfigError);
    expect(() => readConfig(env)).toThrow(new RegExp(`^${name} is [^\n]*$`));
    if (name !== "PORT") return;
    const r = await run(["serve"], env);
    expect([r.code, r.err.trim().split("\n").length]).toEqual([1, 1]);
  });
});

describe("the sandbox gateway", () => {
  it("keeps what it answered over a kill -9, refuses over its limit, and never charges a cancelled reference", async () => {
    const ledger = {
      SANDBOX_LEDGER: join(dataDir, "ledger.jsonl"),
      SANDBOX_LATENCY_MS: "30",
      SANDBOX_JITTER_MS: "0",
      SANDBOX_IN_FLIGHT_MAX: "2",
    };
    const first = await startSandboxProcess(ledger);
    const charge = (url: string, reference: string, token = "tok_ok", amount = 100) =>
      call(`${url}/charges`, {
        method: "POST",
        headers: { "content-type": "application/json", "idempotency-key": reference },
        body: JSON.stringify({ amount, currency: "JPY", token, reference, reservationId: "r" }),
      });
    const burst = await Promise.all(["a", "b", "c", "d"].map((r) => charge(first.url, r)));
    expect(burst.map((r) => r.status).sort()).toEqual([201, 201, 429, 429]);
    const done = burst.findIndex((r) => r.status === 201);
    const reference = "abcd"[done] as string;
    expect((await charge(first.url, reference)).body).toEqual(burst[done]?.body);
    expect((await charge(first.url, reference, "tok_ok", 999)).status).toBe(409);
    expect((await call(`${first.url}/charges/never`)).status).toBe(404);
    expect((await call(`${first.url}/charges/never/cancel`, { method: "POST" })).body).toMatchObject({
      status: "canceled",
    });
    expect((await call(`${first.url}/charges/${reference}/cancel`, { method: "POST" })).status).toBe(409);
    process.kill(-first.pid, "SIGKILL");
    const second = await startSandboxProcess(ledger);
    expect((await call(`${second.url}/charges/${reference}`)).body).toEqual(burst[done]?.body);
    expect((await charge(second.url, "never")).status).toBe(410);
    for (let i = 0; i < 2; i++)
      expect(
        (
          await call(`${second.url}/charges/${reference}/refund`, {
            method: "POST",
            headers: { "idempotency-key": "r" },
          })
        ).body,
      ).toMatchObject({
        status: "refunded",
      });
    const list = (await call<{ charges: Array<{ reference: string }>; next: string }>(`${second.url}/charges?limit=1`))
      .body;
    expect(list.charges).toHaveLength(1);
    expect(
      (
        await call<{ charges: Array<{ reference: string }> }>(`${second.url}/charges?after=${list.next}`)
      ).body.charges.map((c) => c.reference),
    ).not.toContain(list.charges[0]?.reference);
    await second.stop();
  });
});
