/**
 * Crash points: a real process that kills itself at a label, shoppers and an operator who repeat what got no answer,
 * and the books.
 */
import { spawn } from "node:child_process";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sql } from "drizzle-orm";
import { PHASES } from "../src/crash-points.ts";
import { makeReference } from "../src/domain/ids.ts";
import { claimAtOnce } from "../src/payments/claim.ts";
import { insertPayments } from "../src/payments/rows.ts";
import { faultsOf } from "./books.ts";
import {
  CONTACT,
  makeWorld,
  operator,
  pause,
  type Reply,
  type Running,
  saleBodyOf,
  shopper,
  until,
  type World,
} from "./support.ts";

const PROGRAM = fileURLToPath(new URL("../src/fukubukuro.mjs", import.meta.url));
const SOURCE = fileURLToPath(new URL("../src", import.meta.url));

/** Every label in the source. A new call that leaves the process brings its label along. */
export function labels(): string[] {
  const files = (readdirSync(SOURCE, { recursive: true }) as string[]).filter(
    (f) => f.endsWith(".ts") && statSync(join(SOURCE, f)).isFile(),
  );
  const found = files.flatMap((f) =>
    [...readFileSync(join(SOURCE, f), "utf8").matchAll(/\baround\("([A-Za-z.-]+)"/g)].map((m) => m[1] as string),
  );
  return [...new Set(found)].sort();
}
export const points = (): string[] => labels().flatMap((label) => PHASES.map((phase) => `${label}:${phase}`));

/** Short times, so that leases, deadlines and look-ups of a run pass within seconds. */
const QUICK = {
  GATEWAY_TIMEOUT_MS: "400",
  GATEWAY_OVERRUN_MS: "100",
  GATEWAY_LEASE_MS: "700",
  RETRY_GRACE_MS: "800",
  ACTION_DEADLINE_MS: "500",
  MAIL_RATE_PER_S: "1000",
  CUSTOMER_RATE_PER_S: "100000",
};
const HOLD_MS = 2_200;
const HIT_MS_MAX = 25_000;
const HEAL_MS_MAX = 40_000;
/** A mail that was taken from the outbox by somebody who never heard of it waits for its lease of 30 s, also twice. */
const LEASES_MS_MAX = 90_000;

export interface Lane {
  world: World;
  /** Serves HTTP for setting the scene; has no loops of its own. */
  helper: Running;
  close(): Promise<void>;
}

export async function openLane(): Promise<Lane> {
  const world = await makeWorld();
  const helper = await world.start({ ...QUICK, ROLE: "api" });
  return { world, helper, close: () => world.close() };
}

interface Victim {
  url: string;
  ended: Promise<{ signal: string | null; code: number | null }>;
  output(): string;
  kill(signal?: NodeJS.Signals): void;
  pid: number;
}

/** A real service process over the world's servers; resolves when it listens, or has ended already. */
export async function startProcess(world: Pick<World, "env">, env: Record<string, string>): Promise<Victim> {
  const child = spawn(process.execPath, [PROGRAM, "serve"], {
    env: { ...process.env, ...world.env({ ...QUICK, PORT: "0", LOG_LEVEL: "info", ...env }) },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let out = "";
  child.stdout.on("data", (d) => (out += d));
  child.stderr.on("data", (d) => (out += d));
  let over = false;
  const ended = new Promise<{ signal: string | null; code: number | null }>((resolve) =>
    child.once("exit", (code, signal) => {
      over = true;
      resolve({ code, signal });
    }),
  );
  const at = () => /"at":"(http:[^"]+)"/.exec(out)?.[1];
  await until("the process to be ready", () => over || out.includes('"msg":"ready"'), 30_000);
  return {
    url: at() ?? "http://127.0.0.1:1",
    ended,
    output: () => out,
    kill: (signal = "SIGKILL") => void child.kill(signal),
    pid: child.pid as number,
  };
}

/**
 * Asks again with the same key until there is an answer that says something: a lost one, a 503 or a process that is
 * gone says nothing.
 */
async function insist<T>(url: () => string, ask: (url: string) => Promise<Reply<T>>): Promise<Reply<T>> {
  return until(
    "an answer",
    async () => {
      const r = await ask(url()).catch(() => null);
      return r && r.status < 500 && r.status !== 202 && r;
    },
    HEAL_MS_MAX,
  );
}

export interface Story {
  saleId: string;
  told: { confirmed: Set<string>; granted: number };
  faults(): Promise<string[]>;
}

/** A hold that is pinned for a payment whose row is not written. */
async function halfPaid(lane: Lane, saleId: string, customerId: string) {
  const { ctx } = lane.helper.service;
  const sale = await ctx.sales.get(saleId);
  if (!sale) throw new Error("no sale");
  const { id } = (await shopper(lane.helper.url, customerId).reserve(saleId, "half")).body;
  const key = ctx.ids.parse(id, customerId)?.key as string;
  const reference = makeReference(Date.now());
  await ctx.sales.call(sale, (s) => ctx.scripts.pay(s, [{ key, customerId, reference, referenceBefore: "" }]));
  const lines = [{ sku: "bag", quantity: 1, unitPrice: 1000, name: "Bag" }];
  const common = {
    saleId,
    reservationId: id,
    reservationKey: key,
    customerId,
    amount: 1000,
    currency: "JPY",
    lines,
    contact: CONTACT,
    language: "en",
  };
  return { ...common, reference, state: "queued" as const };
}

/**
 * What a process before this one left half done: a pin without a row, a payment outside the line, a capture without an
 * order.
 */
async function leaveHalves(lane: Lane, saleId: string): Promise<void> {
  const { ctx } = lane.helper.service;
  const sale = await ctx.sales.get(saleId);
  if (!sale) throw new Error("no sale");
  const half = (customerId: string) => halfPaid(lane, saleId, customerId);
  await half("pinned");
  await insertPayments(ctx.db, [{ ...(await half("outside")), gateway: "sandbox", token: "tok_ok", tokenDigest: "" }]);
  const captured = { ...(await half("captured")), gateway: "cod", tokenDigest: "" };
  await insertPayments(ctx.db, [captured]);
  await claimAtOnce(ctx.db, saleId, [captured.reference], sale.epoch);
  // Long enough ago that whoever captured it is not at work any more.
  await ctx.db.execute(
    sql`update payments set captured_at = now() - interval '10 seconds' where reference = ${captured.reference}`,
  );
}

/**
 * A payment that ended unpaid by our books, and a gateway that captured it: once while the hold lives, once after it is
 * gone.
 */
async function leaveLateMoney(lane: Lane, saleId: string): Promise<void> {
  const { ctx } = lane.helper.service;
  const sale = await ctx.sales.get(saleId);
  if (!sale) throw new Error("no sale");
  for (const customerId of ["late-held", "late-gone"]) {
    const { reference, ...rest } = await halfPaid(lane, saleId, customerId);
    const ended = {
      gateway: "sandbox",
      tokenDigest: "",
      state: "cancelled" as const,
      declineCode: "test",
      endedAt: new Date(),
    };
    await insertPayments(ctx.db, [{ reference, ...rest, ...ended }]);
    const { reservationId, amount, currency, reservationKey } = rest;
    if (customerId === "late-gone")
      await ctx.sales.call(sale, (s) =>
        ctx.scripts.decline(s, [{ key: reservationKey, reference, graceMs: 0, to: "released" }]),
      );
    await until("the gateway to take it", async () => {
      const r = await fetch(`${lane.world.gateway.url}/charges`, {
        method: "POST",
        headers: { "content-type": "application/json", "idempotency-key": reference },
        body: JSON.stringify({ reference, reservationId, amount, currency, token: "tok_ok" }),
      });
      return r.status === 201;
    });
  }
}

/** A small sale in which everything happens once. `url` is asked anew for each request, since processes come and go. */
function play(lane: Lane, saleId: string, url: () => string, told: Story["told"], flush: boolean): Promise<unknown>[] {
  const buy = async (customerId: string, ...tokens: Array<Record<string, string>>): Promise<string | null> => {
    let order: string | null = null;
    const held = await insist(url, (u) => shopper(u, customerId).reserve(saleId, "k"));
    for (const payment of tokens) {
      const paid = await insist(url, (u) => shopper(u, customerId).confirm(held.body.id, payment, { waitS: 2 }));
      if (paid.body.status !== "confirmed") continue;
      order = paid.body.orderId as string;
      told.confirmed.add(order);
    }
    return order;
  };
  const card = buy("card", { token: "tok_ok" });
  let cardOrder: string | null | undefined;
  card.then(
    (order) => (cardOrder = order),
    () => {},
  );
  const operators = async () => {
    const op = () => operator(url());
    await insist(url, () => op().topUp(saleId, 5, "once"));
    told.granted += 5;
    const extra = saleBodyOf({ id: `${saleId}-x` });
    await insist(url, () => op().create(extra));
    await insist(url, () => op().patch(extra.id, { reserving: "off" }));
    const id = await until(
      "an order to refund",
      async () => {
        // On a busy machine the hold has run out before its shopper came through: then there is nothing to refund.
        if (cardOrder === null) return "none";
        const r = await op()
          .get<{ orders: Array<{ id: string; customerId: string }> }>(`/orders?saleId=${saleId}`)
          .catch(() => null);
        return r?.status === 200 && r.body.orders.find((o) => o.customerId === "card")?.id;
      },
      HEAL_MS_MAX,
    );
    const refund = (orderId: string) =>
      op()
        .refund(orderId, true)
        .then((r) => ({ ...r, status: r.status === 202 ? 200 : r.status }));
    if (id !== "none") await insist(url, () => refund(id));
    if (flush) await lane.helper.service.ctx.redis.client.flushall();
  };
  const release = async () => {
    const held = await insist(url, (u) => shopper(u, "gives").reserve(saleId, "k"));
    await insist(url, (u) => shopper(u, "gives").release(held.body.id));
  };
  return [
    buy("cash", { gateway: "cod" }),
    card,
    buy("twice", { token: "tok_declined" }, { token: "tok_ok" }),
    buy("silent", { token: "tok_timeout_after_charge" }),
    buy("error", { token: "tok_error_then_ok" }),
    shopperOf3ds(url, saleId),
    insist(url, (u) => shopper(u, "leaves").reserve(saleId, "k")),
    release(),
    operators(),
  ];
}

/** Goes to the bank's page and never comes back: the payment is cancelled at the gateway and the bag comes back. */
async function shopperOf3ds(url: () => string, saleId: string): Promise<void> {
  const held = await insist(url, (u) => shopper(u, "bank").reserve(saleId, "k"));
  await until(
    "the bank's page, or too late for it",
    async () => {
      const r = await shopper(url(), "bank")
        .confirm(held.body.id, { token: "tok_3ds" }, { waitS: 1 })
        .catch(() => null);
      return r && (r.body.payment?.status === "action_required" || r.status === 410 || r.status === 402);
    },
    HEAL_MS_MAX,
  );
}

/**
 * Plays the sale against a process that kills itself at `crashes[0]`, then against one that does at `crashes[1]`, and
 * at last against one that lives; waits until nothing is under way, and answers what is wrong. Throws when a label is
 * not hit: a run without its fault is void.
 */
async function crashOnce(lane: Lane, crashes: string[]): Promise<string[]> {
  const { world } = lane;
  const sale = saleBodyOf({
    holdMs: HOLD_MS * crashes.length,
    maxUnitsPerCustomer: 3,
    items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: 15 }],
  });
  await operator(lane.helper.url).create(sale);
  const flush = crashes.some((c) => c.startsWith("rebuild."));
  const told: Story["told"] = { confirmed: new Set(), granted: 15 };
  if (!flush) {
    await leaveHalves(lane, sale.id);
    await leaveLateMoney(lane, sale.id);
  }
  let now = "";
  let playing: Promise<unknown>[] = [];
  for (const crash of crashes) {
    const victim = await startProcess(world, { FUKUBUKURO_CRASH: crash });
    now = victim.url;
    if (playing.length === 0) playing = play(lane, sale.id, () => now, told, flush);
    for (const p of playing) p.catch(() => {});
    const end = await Promise.race([victim.ended, pause(HIT_MS_MAX).then(() => null)]);
    if (end?.signal !== "SIGKILL") {
      victim.kill();
      throw new Error(
        `${crash} was not hit (${JSON.stringify(end)}): the run is void\n${victim.output().slice(-2000)}`,
      );
    }
  }
  const healer = await world.start({ ...QUICK });
  now = healer.url;
  try {
    await Promise.all(playing);
    const faults = await settledFaults(world, sale.id, told);
    // On a busy machine, and after two crashes, more holds have run out before their shoppers came through.
    if (told.confirmed.size < 2 / crashes.length)
      faults.push(`only ${told.confirmed.size} shoppers were told confirmed: the run is void`);
    return faults;
  } finally {
    await healer.close();
  }
}

const TRIES_MAX = 3;

/**
 * `crashOnce`, and once more where the run was void: on a busy machine holds run out before their shoppers come
 * through, and that says nothing of the crash. A run that shows a fault is never repeated.
 */
export async function crashRun(lane: Lane, crashes: string[]): Promise<string[]> {
  for (let tries = 1; ; tries++) {
    const faults = await crashOnce(lane, crashes).catch((error) => [String(error)]);
    const isVoid = faults.length > 0 && faults.every((fault) => fault.includes("the run is void"));
    if (!isVoid || tries === TRIES_MAX) return faults;
  }
}

/** What is wrong once nothing is under way any more, or when that takes too long. */
async function settledFaults(
  world: World,
  saleId: string,
  told: Story["told"],
  msMax = HEAL_MS_MAX,
): Promise<string[]> {
  const places = {
    databaseUrl: world.databaseUrl,
    redisUrl: world.redis.url,
    gatewayUrl: world.gateway.url,
    mailsFolder: world.mailbox.folder,
  };
  let faults: string[] = [];
  await until(
    "the books to balance",
    async () => {
      faults = await faultsOf(places, saleId, told);
      if (faults.length > 0) await pause(200);
      return faults.length === 0;
    },
    msMax,
  ).catch(() => {});
  return faults;
}

/**
 * The same story against one process that lives through it; `begin` is called when it is ready. Answers what is wrong.
 */
export async function playThrough(
  lane: Lane,
  env: Record<string, string>,
  { flush, begin }: { flush: boolean; begin(): void },
): Promise<string[]> {
  const sale = saleBodyOf({
    holdMs: HOLD_MS * 2,
    maxUnitsPerCustomer: 3,
    items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: 15 }],
  });
  await operator(lane.helper.url).create(sale);
  const told: Story["told"] = { confirmed: new Set(), granted: 15 };
  if (!flush) {
    await leaveHalves(lane, sale.id);
    await leaveLateMoney(lane, sale.id);
  }
  const lived = await startProcess(lane.world, env);
  try {
    begin();
    await Promise.all(play(lane, sale.id, () => lived.url, told, flush));
    const faults = await settledFaults(lane.world, sale.id, told, LEASES_MS_MAX);
    const end = await Promise.race([lived.ended, pause(0).then(() => null)]);
    if (end) faults.push(`the process ended: ${JSON.stringify(end)} ${lived.output().slice(-1500)}`);
    if (told.confirmed.size < 2)
      faults.push(`only ${told.confirmed.size} shoppers were told confirmed: the run is void`);
    return faults;
  } catch (error) {
    const stopped = lived.output().match(/"msg":"[^"]*was Postgres restored[^"]*"/g) ?? [];
    throw new Error(`${error}\n${[...new Set(stopped)].join("\n")}\n${lived.output().slice(-3000)}`);
  } finally {
    lived.kill();
    await lived.ended;
  }
}
