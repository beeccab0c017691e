/**
 * The sandbox gateway: a program of its own with a ledger of its own. It is slow and takes few calls at once, as real
 * gateways do. Every fact is appended to the ledger and synced before it is answered; a restart reads the ledger again.
 *
 * Run: node --import ./src/loader.mjs src/local/sandbox-gateway.ts
 * with SANDBOX_LATENCY_MS, SANDBOX_JITTER_MS, SANDBOX_IN_FLIGHT_MAX, SANDBOX_LEDGER and PORT.
 */
import { type FileHandle, mkdir, open, readFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { dirname } from "node:path";
import { pathToFileURL } from "node:url";
import { type ServerType, serve } from "@hono/node-server";
import { Hono } from "hono";
import { html, raw } from "hono/html";
import { nanoid } from "nanoid";
import { z } from "zod";
import { readConfig } from "../config.ts";
import { type Language, preferredLanguage } from "../domain/language.ts";
import { formatMoney } from "../domain/money.ts";

const SLOW_MS = 8_000;
/** A call that never answers is let go after this, in case the caller has no time limit of its own. */
const SILENCE_MS_MAX = 120_000;
const LIST_MAX = 500;

const body = z.strictObject({
  amount: z.number().int().min(0),
  currency: z.string().regex(/^[A-Z]{3}$/),
  token: z.string().min(1),
  reference: z.string().min(1).max(64),
  reservationId: z.string().max(200).default(""),
  returnUrl: z.string().max(2000).nullish(),
});
type ChargeBody = z.infer<typeof body>;
type Status = "pending" | "captured" | "declined" | "action_required" | "canceled" | "refunded";

interface Charge {
  id: string;
  reference: string;
  reservationId: string;
  status: Status;
  amount: number;
  currency: string;
  createdAt: string;
  declineCode?: string;
  actionUrl?: string;
  returnUrl?: string | null;
  /** What was asked for, to refuse the same key with other parameters. */
  asked: string;
  /** Place in the list, given when the charge first got a definite outcome. */
  no: number;
}

/** Appends lines and syncs them, many at a time; `append` resolves when its line is on the disk. */
async function openLedger(
  path: string | undefined,
): Promise<{ lines: string[]; append(line: string): Promise<void>; close(): Promise<void> }> {
  if (!path) return { lines: [], append: async () => {}, close: async () => {} };
  await mkdir(dirname(path), { recursive: true });
  const text = await readFile(path, "utf8").catch(() => "");
  const file: FileHandle = await open(path, "a");
  // A line that was cut off by a crash was never answered for.
  const lines = text
    .slice(0, text.lastIndexOf("\n") + 1)
    .split("\n")
    .filter(Boolean);
  let size = Buffer.byteLength(text.slice(0, text.lastIndexOf("\n") + 1));
  if (text !== "" && !text.endsWith("\n")) await file.truncate(size);
  let waiting: Array<{ line: string; resolve: () => void; reject: (e: unknown) => void }> = [];
  let busy = false;
  async function flush() {
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      try {
        const lines = Buffer.from(`${batch.map((w) => w.line).join("\n")}\n`);
        await file.appendFile(lines);
        await file.datasync();
        size += lines.length;
        for (const w of batch) w.resolve();
      } catch (error) {
        // Half a line must not stand before the next one.
        await file.truncate(size).catch(() => {});
        for (const w of batch) w.reject(error);
      }
    }
    busy = false;
  }
  return {
    lines,
    append(line) {
      return new Promise((resolve, reject) => {
        waiting.push({ line, resolve, reject });
        if (!busy) {
          busy = true;
          void flush();
        }
      });
    },
    close: () => file.close(),
  };
}

const BANK = {
  ja: {
    title: "サンドボックス銀行",
    lead: "練習用の本人認証ページです。実際の請求はありません。",
    pay: "お支払い金額:",
    approve: "承認する",
    refuse: "拒否する",
    nothing: "承認するものはありません。",
    thanks: "ありがとうございます。このページを閉じてください。",
  },
  en: {
    title: "Sandbox bank",
    lead: "An approval page for trying out. Nothing is really charged.",
    pay: "To pay:",
    approve: "Approve",
    refuse: "Refuse",
    nothing: "There is nothing to approve.",
    thanks: "Thank you. You may close this page.",
  },
};
const BANK_STYLE = `body{font:18px/1.6 system-ui,sans-serif;max-width:28rem;margin:3rem auto;padding:0 1rem;color:#1a2a3a}
button{font:inherit;padding:.6rem 1.4rem;min-height:2.75rem;border:1px solid #1a2a3a;border-radius:.5rem;background:#fff;color:#1a2a3a}button[value=approve]{background:#1a4a7a;color:#fff}`;
const bankPage = (language: Language, body: unknown) =>
  html`<!doctype html><html lang="${language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${BANK[language].title}</title><style>${raw(BANK_STYLE)}</style></head><body><main><h1>${BANK[language].title}</h1><p>${BANK[language].lead}</p>${body}</main></body></html>`;

export interface SandboxOptions {
  latencyMs: number;
  jitterMs: number;
  inFlightMax: number;
  ledger: string | undefined;
  port: number;
  host?: string;
}

export async function startSandboxGateway(o: SandboxOptions): Promise<{ url: string; close(): Promise<void> }> {
  const ledger = await openLedger(o.ledger);
  const charges = new Map<string, Charge>();
  const failedOnce = new Set<string>();
  let nextNo = 1;
  let inFlight = 0;
  let inFlightMax = 0;
  for (const line of ledger.lines) {
    const c = JSON.parse(line) as Charge;
    charges.set(c.reference, c);
    nextNo = Math.max(nextNo, c.no + 1);
  }
  let url = "";

  async function decide(c: Charge, change: Partial<Charge>): Promise<Charge> {
    // A capture is new to whoever walks the list, also where an approval was asked for first.
    const decided = { ...c, ...change, no: c.no === 0 || change.status === "captured" ? nextNo++ : c.no };
    await ledger.append(JSON.stringify(decided));
    charges.set(c.reference, decided);
    return decided;
  }
  const shown = ({ asked: _a, no: _n, returnUrl: _r, ...c }: Charge) => c;
  const statusOf: Record<Status, 200 | 201 | 202 | 402 | 409 | 410> = {
    captured: 201,
    refunded: 201,
    declined: 402,
    action_required: 202,
    pending: 409,
    canceled: 410,
  };
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  const untilGone = (signal: AbortSignal) =>
    new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, SILENCE_MS_MAX);
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });

  async function work(c: Charge, b: ChargeBody, signal: AbortSignal): Promise<Charge | "silence" | "error"> {
    await pause(b.token === "tok_slow" ? SLOW_MS : o.latencyMs + Math.random() * o.jitterMs);
    switch (b.token) {
      case "tok_declined":
        return decide(c, { status: "declined", declineCode: "card_declined" });
      case "tok_3ds":
        return decide(c, { status: "action_required", actionUrl: `${url}/approve/${c.reference}` });
      case "tok_timeout_after_charge":
        await decide(c, { status: "captured" });
        await untilGone(signal);
        return "silence";
      case "tok_timeout_before_charge":
        charges.delete(c.reference);
        await untilGone(signal);
        return "silence";
      case "tok_error_then_ok":
        if (!failedOnce.has(c.reference)) {
          failedOnce.add(c.reference);
          charges.delete(c.reference);
          return "error";
        }
        return decide(c, { status: "captured" });
      case "tok_ok":
      case "tok_slow":
        return decide(c, { status: "captured" });
      default:
        return decide(c, { status: "declined", declineCode: "unknown_token" });
    }
  }

  const app = new Hono();
  app.onError((error, c) => c.json({ error: String(error) }, 500));

  app.post("/charges", async (c) => {
    const key = c.req.header("idempotency-key");
    const parsed = body.safeParse(await c.req.json().catch(() => null));
    if (!key || !parsed.success || parsed.data.reference !== key)
      return c.json({ error: "the body or the Idempotency-Key (the reference) is not valid" }, 422);
    const b = parsed.data;
    const asked = JSON.stringify([b.amount, b.currency, b.token, b.reservationId]);
    const before = charges.get(key);
    if (before) {
      if (before.status !== "canceled" && before.asked !== asked)
        return c.json({ error: "the same key with other parameters", reference: key }, 409);
      return c.json(shown(before), statusOf[before.status]);
    }
    if (inFlight >= o.inFlightMax) return c.json({ error: "too many calls in parallel" }, 429);
    inFlight++;
    inFlightMax = Math.max(inFlightMax, inFlight);
    const charge: Charge = {
      id: `ch_${nanoid(16)}`,
      reference: key,
      reservationId: b.reservationId,
      status: "pending",
      amount: b.amount,
      currency: b.currency,
      createdAt: new Date().toISOString(),
      returnUrl: b.returnUrl ?? null,
      asked,
      no: 0,
    };
    charges.set(key, charge);
    try {
      const result = await work(charge, b, c.req.raw.signal);
      if (result === "silence") return c.json({ error: "gone" }, 504);
      if (result === "error") return c.json({ error: "internal error" }, 500);
      return c.json(shown(result), statusOf[result.status]);
    } catch (error) {
      // The ledger could not be written: nothing was decided, and nothing is pending.
      if (charges.get(key) === charge) charges.delete(key);
      throw error;
    } finally {
      inFlight--;
    }
  });

  app.get("/charges", (c) => {
    const after = Number(c.req.query("after") ?? 0);
    const limit = Math.min(Math.max(Number(c.req.query("limit") ?? 100) || 100, 1), LIST_MAX);
    const page = [...charges.values()]
      .filter((x) => x.no > after)
      .sort((a, b) => a.no - b.no)
      .slice(0, limit);
    return c.json({ charges: page.map(shown), next: page.length > 0 ? String(page.at(-1)?.no) : null });
  });

  app.get("/charges/:reference", (c) => {
    const charge = charges.get(c.req.param("reference"));
    return charge ? c.json(shown(charge)) : c.json({ error: "never heard of it" }, 404);
  });

  app.post("/charges/:reference/cancel", async (c) => {
    const reference = c.req.param("reference");
    const charge = charges.get(reference);
    if (charge && (charge.status === "captured" || charge.status === "refunded" || charge.status === "pending"))
      return c.json(shown(charge), 409);
    if (charge?.status === "canceled" || charge?.status === "declined")
      return c.json({ ...shown(charge), status: "canceled" });
    const empty: Charge = {
      id: "",
      reference,
      reservationId: "",
      status: "canceled",
      amount: 0,
      currency: "",
      createdAt: new Date().toISOString(),
      asked: "",
      no: 0,
    };
    return c.json(shown(await decide(charge ?? empty, { status: "canceled" })));
  });

  app.post("/charges/:reference/refund", async (c) => {
    const charge = charges.get(c.req.param("reference"));
    if (!charge) return c.json({ error: "never heard of it" }, 404);
    if (charge.status === "refunded") return c.json(shown(charge));
    if (charge.status !== "captured") return c.json(shown(charge), 409);
    return c.json(shown(await decide(charge, { status: "refunded" })));
  });

  app.get("/stats", (c) =>
    c.json({ inFlight, inFlightMax, charges: [...charges.values()].filter((x) => x.status === "captured").length }),
  );

  // The shopper's approval page of 3-D Secure.
  app.get("/approve/:reference", (c) => {
    const charge = charges.get(c.req.param("reference"));
    const language = preferredLanguage(c.req.header("accept-language"));
    if (charge?.status !== "action_required")
      return c.html(bankPage(language, html`<p>${BANK[language].nothing}</p>`), 404);
    const w = BANK[language];
    return c.html(
      bankPage(
        language,
        html`<p>${w.pay} <strong>${formatMoney(charge.amount, charge.currency, language)}</strong></p>
        <form method="post"><button name="answer" value="approve">${w.approve}</button> <button name="answer" value="refuse">${w.refuse}</button></form>`,
      ),
    );
  });
  app.post("/approve/:reference", async (c) => {
    const charge = charges.get(c.req.param("reference"));
    const language = preferredLanguage(c.req.header("accept-language"));
    if (charge?.status !== "action_required")
      return c.html(bankPage(language, html`<p>${BANK[language].nothing}</p>`), 404);
    const answer = (await c.req.parseBody()).answer;
    await decide(
      charge,
      answer === "approve" ? { status: "captured" } : { status: "declined", declineCode: "authentication_failed" },
    );
    return charge.returnUrl
      ? c.redirect(charge.returnUrl, 303)
      : c.html(bankPage(language, html`<p>${BANK[language].thanks}</p>`));
  });

  const server: ServerType = await new Promise((resolve, reject) => {
    const s = serve({ fetch: app.fetch, port: o.port, hostname: o.host ?? "127.0.0.1" }, () => resolve(s));
    s.once("error", reject);
  });
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url,
    close: () =>
      new Promise((resolve) => {
        server.close(() => void ledger.close().then(resolve));
        if ("closeAllConnections" in server) server.closeAllConnections();
      }),
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const config = readConfig();
  const { ledger = ".data/sandbox-ledger.jsonl", ...sandbox } = config.sandbox;
  const gateway = await startSandboxGateway({ ...sandbox, ledger, port: config.port, host: config.host });
  // One line for whoever started it.
  console.log(gateway.url);
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    process.once(signal, () => void gateway.close().then(() => process.exit(0)));
}
