/**
 * rehearse: what an operator runs before the sale. A whole stack of its own in a temporary folder, a small sale, and
 * things killed before the operator's eyes while shoppers pay; at the end the certificate. Nothing of a real sale is
 * touched.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { signShopperToken } from "../http/auth.ts";
import { anySeed, type Random, randomOf } from "../local/random.ts";
import type { Audit } from "../recover/audit.ts";
import { emptyRedis, killPostgres, killRedis, killService, pause, type Stack, startStack } from "./rehearsal-stack.ts";

const BAGS = 40;
const SHOPPERS = 120;
const HOLD_MS = 8_000;
const SETTLE_MS_MAX = 120_000;
const SALE_ID = "rehearsal";
const CONTACT = { email: "shopper@example.invalid", name: "Rehearsal" };
/** How shoppers pay, by turns. */
const PAYMENTS = [
  { token: "tok_ok" },
  { gateway: "cod" },
  { token: "tok_timeout_after_charge" },
  { token: "tok_ok" },
  { token: "tok_declined" },
];

type Say = (line: string) => void;
type Json = Record<string, unknown>;
/** Null where there was no answer: then nothing is known, and the same is asked again. */
type Answer = { status: number; body: Json } | null;
type Call = (method: string, path: string, body?: unknown, headers?: Record<string, string>) => Promise<Answer>;

export interface Rehearsal {
  audit: Audit;
  /** Order ids that shoppers were told; each has to be recorded. */
  told: string[];
  recorded: number;
  certificate: string;
  ok: boolean;
}

export async function rehearse(say: Say): Promise<Rehearsal> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-rehearsal-"));
  const stops: Array<() => Promise<unknown>> = [() => rm(folder, { recursive: true, force: true })];
  try {
    say("Starting Redis, Postgres, the sandbox gateway, a mailbox and the service ...");
    return await play(await startStack(folder, stops, say), say);
  } finally {
    say("Stopping everything ...");
    for (const stop of stops.reverse()) await stop();
  }
}

async function play(stack: Stack, say: Say): Promise<Rehearsal> {
  const operator = callerOf(stack.url, stack.secrets.admin);
  await openSale(operator);
  say(`A sale of ${BAGS} bags is open; ${SHOPPERS} shoppers press, four payments at a time go through a slow gateway.`);
  const told = new Set<string>();
  const seed = anySeed();
  const shopping = Promise.all(
    Array.from({ length: SHOPPERS }, async (_, i) => {
      const token = signShopperToken(stack.secrets.shopper, `shopper-${i}`, 3_600_000);
      const orderId = await shop(callerOf(stack.url, token), i, randomOf(seed, `shopper-${i}`));
      if (orderId) told.add(orderId);
    }),
  );
  await strikeAll(stack, operator, say);
  say("Waiting until every shopper has an answer and nothing is under way ...");
  await shopping;
  return conclude(stack, operator, [...told]);
}

function callerOf(url: string, token: string): Call {
  return async (method, path, body, headers = {}) => {
    try {
      const r = await fetch(`${url}/v1${path}`, {
        method,
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(15_000),
      });
      return { status: r.status, body: (await r.json()) as Json };
    } catch {
      return null;
    }
  };
}

const openSale = (operator: Call) =>
  operator("POST", "/admin/sales", {
    id: SALE_ID,
    name: "Rehearsal",
    currency: "JPY",
    holdMs: HOLD_MS,
    maxUnitsPerCustomer: 2,
    gateways: ["sandbox", "cod"],
    shippingFee: 800,
    opensAt: new Date(Date.now() - 1000).toISOString(),
    closesAt: new Date(Date.now() + 3_600_000).toISOString(),
    items: [{ sku: "bag", name: "Lucky bag", unitPrice: 5_000, stock: BAGS }],
  });

/** One shopper, who presses until there is an outcome; answers the order that was told. */
async function shop(call: Call, i: number, random: Random): Promise<string | null> {
  await pause(random() * 12_000);
  for (let tries = 0; tries < 60; tries++) {
    const lines = [{ sku: "bag", quantity: 1 }];
    const held = await call("POST", `/sales/${SALE_ID}/reservations`, { lines }, { "idempotency-key": "one" });
    const status = held?.body.status;
    if (status === "confirmed") return held?.body.orderId as string;
    if (status === "expired" || held?.body.code === "SOLD_OUT") return null;
    if (status === "held" || status === "paying") {
      // Who was declined pays otherwise the next time.
      const way = i % PAYMENTS.length;
      const payment = tries > 0 && way === 4 ? PAYMENTS[0] : PAYMENTS[way];
      const path = `/reservations/${held?.body.id}/pay`;
      const paid = await call("POST", path, { payment, contact: CONTACT }, { prefer: "wait=5" });
      if (paid?.body.status === "confirmed") return paid.body.orderId as string;
    }
    await pause(300 + random() * 500);
  }
  return null;
}

/** What is done to whom, and how the sale stands after each. */
async function strikeAll(stack: Stack, operator: Call, say: Say): Promise<void> {
  const strikes: Array<[string, () => Promise<void>]> = [
    ["kill -9 of the service, in the middle of checkouts; started again", () => killService(stack)],
    ["Redis emptied (FLUSHALL)", () => emptyRedis(stack)],
    ["kill -9 of Redis; started again over its data", () => killRedis(stack, say)],
    ["kill -9 of Postgres; started again", () => killPostgres(stack)],
    ["kill -9 of the service once more", () => killService(stack)],
  ];
  for (const [what, strike] of strikes) {
    await pause(2_500);
    say(`  x ${what}`);
    await strike();
    say(`    it goes on; ${await soldOf(operator)} of ${BAGS} sold`);
  }
}

/** Asked until there is an answer: then the sale goes on. */
async function soldOf(operator: Call): Promise<number> {
  for (const until = Date.now() + SETTLE_MS_MAX; ; await pause(200)) {
    const r = await operator("GET", `/admin/sales/${SALE_ID}`);
    if (r?.status === 200) return (r.body.items as Array<{ sold: number }>)[0]?.sold ?? 0;
    if (Date.now() > until) throw new Error("the service did not come back");
  }
}

async function conclude(stack: Stack, operator: Call, told: string[]): Promise<Rehearsal> {
  const audit = await settled(operator);
  const page = await operator("GET", `/admin/orders?saleId=${SALE_ID}&limit=200`);
  const recorded = new Set(((page?.body.orders ?? []) as Array<{ id: string }>).map((o) => o.id));
  const certificate = join(tmpdir(), `fukubukuro-certificate-${Date.now()}.html`);
  const html = await fetch(`${stack.url}/v1/admin/sales/${SALE_ID}/audit`, {
    headers: { authorization: `Bearer ${stack.secrets.admin}`, accept: "text/html" },
  });
  await writeFile(certificate, await html.text());
  const kept = told.every((id) => recorded.has(id));
  const ok = audit.ok && kept && audit.open.paying === 0 && recorded.size > 0;
  return { audit, told, recorded: recorded.size, certificate, ok };
}

/** The books when nothing is under way any more, or as they stand after two minutes. */
async function settled(operator: Call): Promise<Audit> {
  for (const until = Date.now() + SETTLE_MS_MAX; ; await pause(500)) {
    const a = (await operator("GET", `/admin/sales/${SALE_ID}/audit`))?.body as unknown as Audit | undefined;
    if (a?.ok && underWay(a) === 0) return a;
    if (Date.now() <= until) continue;
    if (a?.open) return a;
    throw new Error("the books could not be read in two minutes");
  }
}

const underWay = ({ open, mails, items }: Audit): number =>
  open.paying + open.journalLag + open.refunding + mails.queued + items.reduce((n, i) => n + i.held, 0);

/** The end of a rehearsal, as an operator reads it. */
export function verdictOf(r: Rehearsal): string[] {
  const { audit: a } = r;
  const [item] = a.items;
  const answer = (n: number) => (n === 0 ? "no" : `YES: ${n}`);
  return [
    "",
    `Sold ${item?.sold} of ${item?.granted}, free ${item?.free}, held ${item?.held}; charges ${a.charges.captured}, orders ${a.orders.recorded}, mails ${a.mails.sent}.`,
    `Is stock off?                          ${answer(Math.abs(item?.difference ?? 0))}`,
    `Was anyone charged without an order?   ${answer(a.charges.withoutOrder + a.charges.twice)}`,
    `Was anyone mailed without an order?    ${answer(a.mails.withoutOrder)}`,
    `Was "confirmed" told and not recorded? ${r.told.length} told, ${r.recorded} recorded`,
    `Certificate: ${r.certificate}`,
    r.ok ? "The rehearsal passed: the books balance." : "THE REHEARSAL FAILED: do not open a sale with this build.",
  ];
}
