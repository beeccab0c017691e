/** The sandbox gateway's charges: what becomes of each, by its token, and the ledger that remembers it. */
import { nanoid } from "nanoid";
import { z } from "zod";
import { type Random, randomOf } from "./random.ts";
import { type Ledger, openLedger } from "./sandbox-ledger.ts";

const SLOW_MS = 8_000;
/** A call that never answers is let go after this, in case the caller has no time limit of its own. */
const SILENCE_MS_MAX = 120_000;

export const chargeBody = z.strictObject({
  amount: z.number().int().min(0),
  currency: z.string().regex(/^[A-Z]{3}$/),
  token: z.string().min(1),
  reference: z.string().min(1).max(64),
  reservationId: z.string().max(200).default(""),
  returnUrl: z.string().max(2000).nullish(),
});
export type ChargeBody = z.infer<typeof chargeBody>;
type Status = "pending" | "captured" | "declined" | "action_required" | "canceled" | "refunded";

export interface Charge {
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

export interface SandboxOptions {
  latencyMs: number;
  jitterMs: number;
  inFlightMax: number;
  ledger: string | undefined;
  port: number;
  host?: string;
}

/** The gateway's state: every charge by its reference, as the ledger has it. */
export interface Sandbox {
  options: SandboxOptions;
  ledger: Ledger;
  charges: Map<string, Charge>;
  /** References of `tok_error_then_ok` that were refused once. */
  failedOnce: Set<string>;
  nextNo: number;
  inFlight: number;
  inFlightMax: number;
  random: Random;
  /** Known once it listens. */
  url: string;
}

export async function openSandbox(options: SandboxOptions): Promise<Sandbox> {
  const ledger = await openLedger(options.ledger);
  const charges = new Map<string, Charge>();
  let nextNo = 1;
  for (const line of ledger.lines) {
    const c = JSON.parse(line) as Charge;
    charges.set(c.reference, c);
    nextNo = Math.max(nextNo, c.no + 1);
  }
  // The n-th call takes as long in every run.
  const random = randomOf(0, "sandbox-gateway");
  return { options, ledger, charges, failedOnce: new Set(), nextNo, inFlight: 0, inFlightMax: 0, random, url: "" };
}

export const statusOf: Record<Status, 200 | 201 | 202 | 402 | 409 | 410> = {
  captured: 201,
  refunded: 201,
  declined: 402,
  action_required: 202,
  pending: 409,
  canceled: 410,
};
export const shown = ({ asked: _a, no: _n, returnUrl: _r, ...c }: Charge) => c;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const untilGone = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, SILENCE_MS_MAX);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });

/** Written to the ledger, then true. */
export async function decide(s: Sandbox, c: Charge, change: Partial<Charge>): Promise<Charge> {
  // A capture is new to whoever walks the list, also where an approval was asked for first.
  const decided = { ...c, ...change, no: c.no === 0 || change.status === "captured" ? s.nextNo++ : c.no };
  await s.ledger.append(JSON.stringify(decided));
  s.charges.set(c.reference, decided);
  return decided;
}

export const pendingOf = (b: ChargeBody, asked: string): Charge => ({
  id: `ch_${nanoid(16)}`,
  reference: b.reference,
  reservationId: b.reservationId,
  status: "pending",
  amount: b.amount,
  currency: b.currency,
  createdAt: new Date().toISOString(),
  returnUrl: b.returnUrl ?? null,
  asked,
  no: 0,
});

/** What becomes of a charge is said by its token. */
export async function work(
  s: Sandbox,
  c: Charge,
  b: ChargeBody,
  signal: AbortSignal,
): Promise<Charge | "silence" | "error"> {
  const { latencyMs, jitterMs } = s.options;
  await pause(b.token === "tok_slow" ? SLOW_MS : latencyMs + s.random() * jitterMs);
  switch (b.token) {
    case "tok_declined":
      return decide(s, c, { status: "declined", declineCode: "card_declined" });
    case "tok_3ds":
      return decide(s, c, { status: "action_required", actionUrl: `${s.url}/approve/${c.reference}` });
    case "tok_timeout_after_charge":
      await decide(s, c, { status: "captured" });
      await untilGone(signal);
      return "silence";
    case "tok_timeout_before_charge":
      s.charges.delete(c.reference);
      await untilGone(signal);
      return "silence";
    case "tok_error_then_ok":
      if (!s.failedOnce.has(c.reference)) {
        s.failedOnce.add(c.reference);
        s.charges.delete(c.reference);
        return "error";
      }
      return decide(s, c, { status: "captured" });
    case "tok_ok":
    case "tok_slow":
      return decide(s, c, { status: "captured" });
    default:
      return decide(s, c, { status: "declined", declineCode: "unknown_token" });
  }
}
