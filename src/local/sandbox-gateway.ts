/**
 * The sandbox gateway: a program of its own with a ledger of its own. It is slow and takes few calls at once, as real
 * gateways do. Every fact is appended to the ledger and synced before it is answered; a restart reads the ledger again.
 *
 * Run: node --import ./src/loader.mjs src/local/sandbox-gateway.ts
 * with SANDBOX_LATENCY_MS, SANDBOX_JITTER_MS, SANDBOX_IN_FLIGHT_MAX, SANDBOX_LEDGER and PORT.
 */
import type { AddressInfo } from "node:net";
import { pathToFileURL } from "node:url";
import { type ServerType, serve } from "@hono/node-server";
import { type Context, Hono } from "hono";
import { readConfig } from "../config.ts";
import { preferredLanguage } from "../domain/language.ts";
import { approvalPage, nothingToApprove, thanks } from "./sandbox-bank-page.ts";
import {
  type Charge,
  chargeBody,
  decide,
  openSandbox,
  pendingOf,
  type Sandbox,
  type SandboxOptions,
  shown,
  statusOf,
  work,
} from "./sandbox-charges.ts";

const LIST_MAX = 500;

export async function startSandboxGateway(o: SandboxOptions): Promise<{ url: string; close(): Promise<void> }> {
  const sandbox = await openSandbox(o);
  const { ledger } = sandbox;
  const app = appOf(sandbox);
  const server: ServerType = await new Promise((resolve, reject) => {
    const s = serve({ fetch: app.fetch, port: o.port, hostname: o.host ?? "127.0.0.1" }, () => resolve(s));
    s.once("error", reject);
  });
  sandbox.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: sandbox.url,
    close: () =>
      new Promise((resolve) => {
        server.close(() => void ledger.close().then(resolve));
        if ("closeAllConnections" in server) server.closeAllConnections();
      }),
  };
}

function appOf(s: Sandbox): Hono {
  const app = new Hono();
  app.onError((error, c) => c.json({ error: String(error) }, 500));
  app.post("/charges", (c) => charge(s, c));
  app.get("/charges", (c) => list(s, c));
  app.get("/charges/:reference", (c) => {
    const found = s.charges.get(c.req.param("reference"));
    return found ? c.json(shown(found)) : c.json({ error: "never heard of it" }, 404);
  });
  app.post("/charges/:reference/cancel", (c) => cancel(s, c, c.req.param("reference")));
  app.post("/charges/:reference/refund", (c) => refund(s, c, c.req.param("reference")));
  app.get("/stats", (c) => {
    const { inFlight, inFlightMax } = s;
    const captured = [...s.charges.values()].filter((x) => x.status === "captured").length;
    return c.json({ inFlight, inFlightMax, charges: captured });
  });
  app.get("/approve/:reference", (c) => showApproval(s, c, c.req.param("reference")));
  app.post("/approve/:reference", (c) => takeApproval(s, c, c.req.param("reference")));
  return app;
}

async function charge(s: Sandbox, c: Context): Promise<Response> {
  const key = c.req.header("idempotency-key");
  const parsed = chargeBody.safeParse(await c.req.json().catch(() => null));
  if (!key || !parsed.success || parsed.data.reference !== key)
    return c.json({ error: "the body or the Idempotency-Key (the reference) is not valid" }, 422);
  const b = parsed.data;
  const asked = JSON.stringify([b.amount, b.currency, b.token, b.reservationId]);
  const before = s.charges.get(key);
  if (before) {
    if (before.status !== "canceled" && before.asked !== asked)
      return c.json({ error: "the same key with other parameters", reference: key }, 409);
    return c.json(shown(before), statusOf[before.status]);
  }
  if (s.inFlight >= s.options.inFlightMax) return c.json({ error: "too many calls in parallel" }, 429);
  s.inFlight++;
  s.inFlightMax = Math.max(s.inFlightMax, s.inFlight);
  const pending = pendingOf(b, asked);
  s.charges.set(key, pending);
  try {
    const result = await work(s, pending, b, c.req.raw.signal);
    if (result === "silence") return c.json({ error: "gone" }, 504);
    if (result === "error") return c.json({ error: "internal error" }, 500);
    return c.json(shown(result), statusOf[result.status]);
  } catch (error) {
    // The ledger could not be written: nothing was decided, and nothing is pending.
    if (s.charges.get(key) === pending) s.charges.delete(key);
    throw error;
  } finally {
    s.inFlight--;
  }
}

function list(s: Sandbox, c: Context): Response {
  const after = Number(c.req.query("after") ?? 0);
  const limit = Math.min(Math.max(Number(c.req.query("limit") ?? 100) || 100, 1), LIST_MAX);
  const page = [...s.charges.values()]
    .filter((x) => x.no > after)
    .sort((a, b) => a.no - b.no)
    .slice(0, limit);
  return c.json({ charges: page.map(shown), next: page.length > 0 ? String(page.at(-1)?.no) : null });
}

/** Closes a reference for good, also one that was never heard of. */
async function cancel(s: Sandbox, c: Context, reference: string): Promise<Response> {
  const found = s.charges.get(reference);
  if (found && (found.status === "captured" || found.status === "refunded" || found.status === "pending"))
    return c.json(shown(found), 409);
  if (found?.status === "canceled" || found?.status === "declined")
    return c.json({ ...shown(found), status: "canceled" });
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
  return c.json(shown(await decide(s, found ?? empty, { status: "canceled" })));
}

async function refund(s: Sandbox, c: Context, reference: string): Promise<Response> {
  const found = s.charges.get(reference);
  if (!found) return c.json({ error: "never heard of it" }, 404);
  if (found.status === "refunded") return c.json(shown(found));
  if (found.status !== "captured") return c.json(shown(found), 409);
  return c.json(shown(await decide(s, found, { status: "refunded" })));
}

/** The shopper's approval page of 3-D Secure. */
function showApproval(s: Sandbox, c: Context, reference: string) {
  const found = s.charges.get(reference);
  const language = preferredLanguage(c.req.header("accept-language"));
  if (found?.status !== "action_required") return c.html(nothingToApprove(language), 404);
  return c.html(approvalPage(language, found));
}

async function takeApproval(s: Sandbox, c: Context, reference: string) {
  const found = s.charges.get(reference);
  const language = preferredLanguage(c.req.header("accept-language"));
  if (found?.status !== "action_required") return c.html(nothingToApprove(language), 404);
  const { answer } = await c.req.parseBody();
  await decide(
    s,
    found,
    answer === "approve" ? { status: "captured" } : { status: "declined", declineCode: "authentication_failed" },
  );
  return found.returnUrl ? c.redirect(found.returnUrl, 303) : c.html(thanks(language));
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
