/**
 * rehearse: what an operator runs before the sale. A whole stack of its own in a temporary folder, a small sale, and
 * things killed before the operator's eyes while shoppers pay; at the end the certificate. Nothing of a real sale is
 * touched.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { nanoid } from "nanoid";
import { signShopperToken } from "../http/auth.ts";
import { startMailbox } from "../local/mailbox.ts";
import { startPostgres } from "../local/postgres.ts";
import { freePort, kill, startGuarded } from "../local/processes.ts";
import { startRedis } from "../local/redis.ts";
import { startSandboxProcess } from "../local/stack.ts";
import { serviceProgram } from "../places.ts";
import type { Audit } from "../recover/audit.ts";

const BAGS = 40;
const SHOPPERS = 120;
const HOLD_MS = 8_000;
const SETTLE_MS_MAX = 120_000;

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export interface Rehearsal {
  audit: Audit;
  /** Order ids that shoppers were told; each has to be recorded. */
  told: string[];
  recorded: number;
  certificate: string;
  ok: boolean;
}

export async function rehearse(say: (line: string) => void): Promise<Rehearsal> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-rehearsal-"));
  const stops: Array<() => Promise<unknown>> = [() => rm(folder, { recursive: true, force: true })];
  const secrets = { admin: nanoid(43), shopper: nanoid(43), redis: nanoid(), postgres: nanoid() };
  try {
    return await play();
  } finally {
    say("Stopping everything ...");
    for (const stop of stops.reverse()) await stop();
  }

  async function play(): Promise<Rehearsal> {
    say("Starting Redis, Postgres, the sandbox gateway, a mailbox and the service ...");
    let redis = await startRedis(join(folder, "redis"), say, { password: secrets.redis });
    stops.push(() => redis.stop());
    let postgres = await startPostgres(join(folder, "postgres"), { password: secrets.postgres });
    stops.push(() => postgres.stop());
    const gateway = await startSandboxProcess({
      SANDBOX_LEDGER: join(folder, "ledger.jsonl"),
      SANDBOX_LATENCY_MS: "250",
      SANDBOX_JITTER_MS: "150",
    });
    stops.push(gateway.stop);
    const mailbox = await startMailbox(join(folder, "mails"));
    stops.push(mailbox.close);
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    let service = await startService();
    stops.push(() => service.stop());

    async function startService() {
      const one = startGuarded("service", [...serviceProgram(), "serve"], {
        signal: "TERM",
        env: {
          PORT: String(port),
          HOST: "127.0.0.1",
          ROLE: "all",
          PROCESSES: "1",
          LOG_LEVEL: "silent",
          DATA_DIR: folder,
          ADMIN_TOKEN: secrets.admin,
          REDIS_URL: redis.url,
          DATABASE_URL: postgres.url,
          SANDBOX_GATEWAY_URL: gateway.url,
          SMTP_URL: mailbox.url,
          SHOPPER_TOKEN_SECRET: secrets.shopper,
          GATEWAYS: "sandbox,cod",
          GATEWAY_TIMEOUT_MS: "1500",
          GATEWAY_OVERRUN_MS: "500",
          GATEWAY_LEASE_MS: "2500",
          RETRY_GRACE_MS: "4000",
        },
      });
      for (;;) {
        if ((await fetch(`${url}/readyz`).catch(() => null))?.ok) return one;
        await Promise.race([pause(100), one.endedEarly]);
      }
    }

    type Json = Record<string, unknown>;
    /** An answer, or null where there was none: then nothing is known, and the same is asked again. */
    async function call(
      method: string,
      path: string,
      token: string,
      body?: unknown,
      headers: Record<string, string> = {},
    ): Promise<{ status: number; body: Json } | null> {
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
    }
    const admin = (method: string, path: string, body?: unknown) => call(method, `/admin${path}`, secrets.admin, body);

    const saleId = "rehearsal";
    await admin("POST", "/sales", {
      id: saleId,
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
    say(
      `A sale of ${BAGS} bags is open; ${SHOPPERS} shoppers press, four payments at a time go through a slow gateway.`,
    );

    const told = new Set<string>();
    const contact = { email: "shopper@example.invalid", name: "Rehearsal" };
    const ways: Json[] = [
      { token: "tok_ok" },
      { gateway: "cod" },
      { token: "tok_timeout_after_charge" },
      { token: "tok_ok" },
      { token: "tok_declined" },
    ];
    async function shop(i: number): Promise<void> {
      const token = signShopperToken(secrets.shopper, `shopper-${i}`, 3_600_000);
      await pause(Math.random() * 12_000);
      for (let tries = 0; tries < 60; tries++) {
        const held = await call(
          "POST",
          `/sales/${saleId}/reservations`,
          token,
          { lines: [{ sku: "bag", quantity: 1 }] },
          { "idempotency-key": "one" },
        );
        const status = held?.body.status;
        if (status === "confirmed") return void told.add(held?.body.orderId as string);
        if (status === "expired" || held?.body.code === "SOLD_OUT") return;
        if (status === "held" || status === "paying") {
          const payment = tries > 0 && i % ways.length === 4 ? ways[0] : ways[i % ways.length];
          const paid = await call(
            "POST",
            `/reservations/${held?.body.id}/pay`,
            token,
            { payment, contact },
            { prefer: "wait=5" },
          );
          if (paid?.body.status === "confirmed") return void told.add(paid.body.orderId as string);
        }
        await pause(300 + Math.random() * 500);
      }
    }
    const shopping = Promise.all(Array.from({ length: SHOPPERS }, (_, i) => shop(i)));
    /** Asked until there is an answer: then the sale goes on. */
    const sold = async (): Promise<number> => {
      for (const until = Date.now() + SETTLE_MS_MAX; ; await pause(200)) {
        const r = await admin("GET", `/sales/${saleId}`);
        if (r?.status === 200) return (r.body.items as Array<{ sold: number }>)[0]?.sold ?? 0;
        if (Date.now() > until) throw new Error("the service did not come back");
      }
    };
    /** What is done to whom, and how the sale stands after it. */
    async function strike(what: string, f: () => Promise<unknown>): Promise<void> {
      await pause(2_500);
      say(`  x ${what}`);
      await f();
      say(`    it goes on; ${await sold()} of ${BAGS} sold`);
    }
    const dead = (pid: number | undefined) => pid !== undefined && kill(-pid, "SIGKILL");
    await strike("kill -9 of the service, in the middle of checkouts; started again", async () => {
      dead(service.child.pid);
      service = await startService();
    });
    await strike("Redis emptied (FLUSHALL)", async () => {
      const client = new Redis(redis.url);
      await client.flushall();
      client.disconnect();
    });
    await strike("kill -9 of Redis; started again over its data", async () => {
      dead(redis.pid);
      redis = await startRedis(join(folder, "redis"), say, { password: secrets.redis, port: redis.port });
    });
    await strike("kill -9 of Postgres; started again", async () => {
      dead(postgres.pid);
      for (let tries = 0; ; tries++) {
        const started = await startPostgres(join(folder, "postgres"), {
          password: secrets.postgres,
          port: Number(new URL(postgres.url).port),
        }).catch((error) => {
          if (tries > 30) throw error;
          return null; // its backends hold the shared memory a little longer
        });
        if (started) {
          postgres = started;
          return;
        }
        await pause(300);
      }
    });
    await strike("kill -9 of the service once more", async () => {
      dead(service.child.pid);
      service = await startService();
    });
    say("Waiting until every shopper has an answer and nothing is under way ...");
    await shopping;
    const audit = await settled();
    const orders = ((await admin("GET", `/orders?saleId=${saleId}&limit=200`))?.body.orders ?? []) as Array<{
      id: string;
    }>;
    const recorded = new Set(orders.map((o) => o.id));
    const certificate = join(tmpdir(), `fukubukuro-certificate-${Date.now()}.html`);
    const page = await fetch(`${url}/v1/admin/sales/${saleId}/audit`, {
      headers: { authorization: `Bearer ${secrets.admin}`, accept: "text/html" },
    });
    await writeFile(certificate, await page.text());
    const kept = [...told].every((id) => recorded.has(id));
    return {
      audit,
      told: [...told],
      recorded: recorded.size,
      certificate,
      ok: audit.ok && kept && audit.open.paying === 0 && recorded.size > 0,
    };

    async function settled(): Promise<Audit> {
      const until = Date.now() + SETTLE_MS_MAX;
      for (;;) {
        const a = (await admin("GET", `/sales/${saleId}/audit`))?.body as unknown as Audit | undefined;
        const rest =
          a?.open &&
          a.open.paying +
            a.open.journalLag +
            a.open.refunding +
            a.mails.queued +
            a.items.reduce((n, i) => n + i.held, 0);
        if (a?.ok && rest === 0) return a;
        if (Date.now() > until) {
          if (a?.open) return a;
          throw new Error("the books could not be read in two minutes");
        }
        await pause(500);
      }
    }
  }
}

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
