/** What the tests run on: real servers of their own, a service over them, and shoppers who speak HTTP. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nanoid } from "nanoid";
import { pino } from "pino";
import postgres from "postgres";
import { inject } from "vitest";
import { compose, type Service } from "../src/compose.ts";
import { type Config, readConfig } from "../src/config.ts";
import { signShopperToken } from "../src/http/auth.ts";
import type { SaleBody } from "../src/http/contract.ts";
import { listen } from "../src/http/server.ts";
import type { ReservationView } from "../src/http/views.ts";
import { type Mailbox, startMailbox } from "../src/local/mailbox.ts";
import { startRedis } from "../src/local/redis.ts";
import { startSandboxProcess } from "../src/local/stack.ts";
import type { Audit } from "../src/recover/audit.ts";

export const ADMIN_TOKEN = "admin-token-of-the-tests";
export const SECRET = "shopper-secret-of-the-tests";

/** Waits for a condition, not for a time. Answers its first truthy value. */
export async function until<T>(
  what: string,
  f: () => Promise<T> | T,
  msMax = 20_000,
): Promise<Exclude<T, false | null | undefined | 0 | "">> {
  const end = Date.now() + msMax;
  let last: unknown;
  for (;;) {
    try {
      const value = await f();
      if (value) return value as Exclude<T, false | null | undefined | 0 | "">;
      last = value;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end)
      throw new Error(
        `waited ${msMax} ms for ${what}; last: ${last instanceof Error ? last.stack : JSON.stringify(last)}`,
      );
    await pause(20);
  }
}

/** A poll's pause; never what a test's outcome hangs on. */
export const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** A fresh database made from the migrated template. */
export async function makeDatabase(): Promise<{ url: string; drop(): Promise<void> }> {
  const server = inject("postgresUrl");
  const name = `t_${nanoid(12)
    .replace(/[^A-Za-z0-9]/g, "x")
    .toLowerCase()}`;
  const admin = async (statement: string) => {
    const sql = postgres(server, { max: 1, onnotice: () => {} });
    try {
      // Two files may copy the template at the same moment, which Postgres refuses.
      await until("the template", () => sql.unsafe(statement).then(() => true));
    } finally {
      await sql.end();
    }
  };
  await admin(`create database ${name} template template_fukubukuro`);
  const url = new URL(server);
  url.pathname = `/${name}`;
  return { url: url.href, drop: () => admin(`drop database if exists ${name} with (force)`) };
}

export interface World {
  redis: Awaited<ReturnType<typeof startRedis>>;
  databaseUrl: string;
  gateway: Awaited<ReturnType<typeof startSandboxProcess>>;
  mailbox: Mailbox;
  folder: string;
  /** Settings of a service over these servers; given ones win. */
  config(env?: Record<string, string>): Config;
  /** The same as an environment, for a service in a process of its own. */
  env(env?: Record<string, string>): Record<string, string>;
  /** A service of this process that listens on a port of its own; without the mailbox it is none of local mode. */
  start(env?: Record<string, string>, o?: { mailbox?: boolean }): Promise<Running>;
  sandbox(path: string): Promise<Record<string, number>>;
  close(): Promise<void>;
}

export interface Running {
  service: Service;
  url: string;
  close(): Promise<void>;
}

/** Short times, so that a test sees leases lapse and deadlines pass. */
const QUICK = {
  GATEWAY_TIMEOUT_MS: "1000",
  GATEWAY_OVERRUN_MS: "200",
  GATEWAY_LEASE_MS: "1500",
  RETRY_GRACE_MS: "5000",
  CUSTOMER_RATE_PER_S: "100000",
};
const QUICK_GATEWAY = { SANDBOX_LATENCY_MS: "20", SANDBOX_JITTER_MS: "10", SANDBOX_IN_FLIGHT_MAX: "4" };

export async function makeWorld(o: { gateway?: Record<string, string> } = {}): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-world-"));
  const redis = await startRedis(join(folder, "redis"));
  const database = await makeDatabase();
  const gateway = await startSandboxProcess({
    SANDBOX_LEDGER: join(folder, "ledger.jsonl"),
    ...QUICK_GATEWAY,
    ...o.gateway,
  });
  const mailbox = await startMailbox(join(folder, "mails"));
  const running = new Set<Running>();
  const environment = (env: Record<string, string> = {}) => ({
    REDIS_URL: redis.url,
    DATABASE_URL: database.url,
    SANDBOX_GATEWAY_URL: gateway.url,
    SMTP_URL: mailbox.url,
    DATA_DIR: folder,
    ADMIN_TOKEN,
    SHOPPER_TOKEN_SECRET: SECRET,
    LOG_LEVEL: "silent",
    ...QUICK,
    // The servers of the tests need not outlive a power cut.
    ALLOW_UNSAFE: "fsync,full_page_writes",
    ...env,
  });
  const config = (env?: Record<string, string>) => readConfig(environment(env));
  return {
    redis,
    databaseUrl: database.url,
    gateway,
    mailbox,
    folder,
    config,
    env: environment,
    async start(env, { mailbox: isLocal = true } = {}) {
      const c = config(env);
      const service = await compose(c, pino({ level: c.logLevel ?? "silent" }), {
        mailbox: isLocal ? mailbox : null,
        alone: false,
      });
      // As main.ts does: nobody is served before Redis has answered, unless it is away on purpose.
      await service.ctx.redis.ready(5_000).catch(() => {});
      service.start();
      const server = await listen(service, 0, "127.0.0.1");
      const one: Running = {
        service,
        url: `http://127.0.0.1:${server.port}`,
        async close() {
          running.delete(one);
          await server.close();
        },
      };
      running.add(one);
      return one;
    },
    sandbox: async (path) => (await fetch(`${gateway.url}${path}`)).json() as Promise<Record<string, number>>,
    async close() {
      await Promise.all([...running].map((r) => r.close()));
      await Promise.all([redis.stop(), gateway.stop(), mailbox.close()]);
      await database.drop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export interface Reply<T = Record<string, unknown>> {
  status: number;
  headers: Headers;
  body: T & { code?: string };
}

export async function call<T = Record<string, unknown>>(url: string, init: RequestInit = {}): Promise<Reply<T>> {
  const response = await fetch(url, init);
  const text = await response.text();
  let body: unknown = text;
  try {
    body = text === "" ? {} : JSON.parse(text);
  } catch {
    // a page
  }
  return { status: response.status, headers: response.headers, body: body as T & { code?: string } };
}

export const CONTACT = { email: "hana@example.jp", name: "山田 花" };

/** A customer who presses buttons. */
export function shopper(url: string, customerId: string, secret = SECRET) {
  const authorization = `Bearer ${signShopperToken(secret, customerId, 3_600_000)}`;
  const json = { authorization, "content-type": "application/json" };
  return {
    authorization,
    reserve: (saleId: string, key: string, lines: unknown = [{ sku: "bag", quantity: 1 }]) =>
      call<ReservationView>(`${url}/v1/sales/${saleId}/reservations`, {
        method: "POST",
        headers: { ...json, "idempotency-key": key },
        body: JSON.stringify({ lines }),
      }),
    confirm: (
      id: string,
      payment: Record<string, string> = { token: "tok_ok" },
      o: {
        waitS?: number;
        more?: Record<string, unknown>;
        headers?: Record<string, string>;
        /** `confirm` is the alias of `pay`. */
        route?: "pay" | "confirm";
      } = {},
    ) =>
      call<ReservationView>(`${url}/v1/reservations/${id}/${o.route ?? "pay"}`, {
        method: "POST",
        headers: { ...json, prefer: `wait=${o.waitS ?? 20}`, ...o.headers },
        body: JSON.stringify({ payment, contact: CONTACT, ...o.more }),
      }),
    read: (id: string) => call<ReservationView>(`${url}/v1/reservations/${id}`, { headers: { authorization } }),
    release: (id: string) =>
      call<ReservationView>(`${url}/v1/reservations/${id}`, { method: "DELETE", headers: { authorization } }),
    list: (saleId: string) =>
      call<{ reservations: ReservationView[] }>(`${url}/v1/sales/${saleId}/reservations`, {
        headers: { authorization },
      }),
    order: (id: string) => call(`${url}/v1/orders/${id}`, { headers: { authorization } }),
  };
}

/** The operator. */
export function operator(url: string, token = ADMIN_TOKEN) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const post = <T = Record<string, unknown>>(path: string, body: unknown, more: Record<string, string> = {}) =>
    call<T>(`${url}/v1/admin${path}`, { method: "POST", headers: { ...headers, ...more }, body: JSON.stringify(body) });
  return {
    post,
    get: <T = Record<string, unknown>>(path: string, more: Record<string, string> = {}) =>
      call<T>(`${url}/v1/admin${path}`, { headers: { ...headers, ...more } }),
    create: (sale: Partial<SaleBody> = {}) => post<{ id: string }>("/sales", saleBodyOf(sale)),
    patch: (saleId: string, body: unknown) =>
      call(`${url}/v1/admin/sales/${saleId}`, { method: "PATCH", headers, body: JSON.stringify(body) }),
    topUp: (saleId: string, delta: number, key: string, sku = "bag") =>
      post<{ free: number; granted: number; replayed: boolean }>(
        `/sales/${saleId}/items/${sku}/stock`,
        { delta, reason: "test" },
        { "idempotency-key": key },
      ),
    audit: async (saleId: string) => (await call<Audit>(`${url}/v1/admin/sales/${saleId}/audit`, { headers })).body,
    refund: (orderId: string, restock: boolean) => post(`/orders/${orderId}/refund`, { reason: "test", restock }),
    sale: async (saleId: string) =>
      (
        await call<{
          items: Array<{ sku: string; granted: number; free: number; held: number; claimed: number; sold: number }>;
        }>(`${url}/v1/admin/sales/${saleId}`, { headers })
      ).body,
  };
}

/** The items of a sale of one kind of bag. */
export const bags = (stock: number) => [{ sku: "bag", name: "Bag", unitPrice: 1000, stock }];

let sales = 0;
/** A sale that is open now, with one item `bag` of 10 units, unless told otherwise. */
export function saleBodyOf(sale: Partial<SaleBody> = {}): SaleBody {
  return {
    id: `sale-${++sales}-${nanoid(6).replace(/[^A-Za-z0-9]/g, "x")}`,
    name: "Lucky bags",
    currency: "JPY",
    holdMs: 60_000,
    maxUnitsPerCustomer: 2,
    opensAt: new Date(Date.now() - 60_000).toISOString(),
    closesAt: new Date(Date.now() + 86_400_000).toISOString(),
    items: [{ sku: "bag", name: "Lucky bag", unitPrice: 10_000, stock: 10 }],
    ...sale,
  };
}

/** Runs `jobs` with at most `width` at a time. */
export async function inParallel<T>(width: number, jobs: Array<() => Promise<T>>): Promise<T[]> {
  const results = new Array<T>(jobs.length);
  let next = 0;
  await Promise.all(
    Array.from({ length: Math.min(width, jobs.length) }, async () => {
      while (next < jobs.length) {
        const i = next++;
        results[i] = await (jobs[i] as () => Promise<T>)();
      }
    }),
  );
  return results;
}
