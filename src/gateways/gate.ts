/** The gate of one gateway: bounded, leased, fair, over all instances. The rules are in lua/permit_take.lua. */
import { nanoid } from "nanoid";
import { around } from "../crash-points.ts";
import type { Scripts } from "../stores/scripts.ts";
import type { GatewayAnswer } from "./port.ts";

export interface Permit {
  token: string;
  /** The payment at the head of the line; "" for an urgent call. */
  reference: string;
  /** Rule E, by the local monotonic clock: a call begun now would end, overrun included, before the lease does. */
  covers(): boolean;
}

/**
 * Calls that the caller names: `look` is a look-up, a cancel or a second send; whoever a shopper waits for goes before
 * refunds and lists.
 */
export type UrgentUse = "look" | "refund" | "list";

export interface Gate {
  gateway: string;
  limit: number;
  take(kind: "charge"): Promise<Permit | "EMPTY" | "BUSY" | { opensInMs: number }>;
  /** Takes a permit for a call other than a charge, asking again until `waitMs` is over; null when none came free. */
  takeUrgent(use: UrgentUse, waitMs: number, signal?: AbortSignal): Promise<Permit | null>;
  /**
   * Gives the permit back: the call has ended. Only one that was given up unanswered may still run, and keeps it until
   * the lease ends.
   */
  settle(permit: Permit, answer: GatewayAnswer | null, callMs: number | null): Promise<void>;
}

export interface GateOptions {
  gateway: string;
  limit: number;
  leaseMs: number;
  timeoutMs: number;
  overrunMs: number;
  /** The gate never existed before, so no call of ours can be running (rule F does not apply). */
  fresh: boolean;
}

const URGENT_POLL_MS = 40;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

export function makeGate(scripts: Scripts, o: GateOptions): Gate {
  let fresh = o.fresh;

  async function take(
    kind: "charge" | "urgent",
    token: string,
  ): Promise<Permit | "EMPTY" | "BUSY" | { opensInMs: number }> {
    // Before the call: the lease cannot have begun earlier than this by our own clock.
    const askedAt = performance.now();
    const r = await around("gate.take", () =>
      scripts.permitTake(o.gateway, { limit: o.limit, leaseMs: o.leaseMs, token, kind, fresh }),
    );
    fresh = false;
    if (r.outcome === "SHUT") return { opensInMs: r.opensInMs };
    if (r.outcome !== "TAKEN") return r.outcome;
    return {
      token,
      reference: r.reference,
      covers: () => performance.now() - askedAt + o.timeoutMs + o.overrunMs <= o.leaseMs,
    };
  }

  return {
    gateway: o.gateway,
    limit: o.limit,
    take: (kind) => take(kind, `${kind}:${nanoid()}`),
    async takeUrgent(use, waitMs, signal) {
      const token = `${use}:${nanoid()}`; // kept while asking, so that the place of an urgent call stands
      for (const until = performance.now() + waitMs; ; ) {
        const got = await take("urgent", token);
        if (typeof got === "object" && "token" in got) return got;
        if (performance.now() >= until || signal?.aborted) {
          await scripts.permitGive(o.gateway, token, null); // its place must not be kept free for nobody
          return null;
        }
        await pause(URGENT_POLL_MS + Math.random() * URGENT_POLL_MS);
      }
    },
    async settle(permit, answer, callMs) {
      const mayStillRun = answer?.outcome === "unknown" && !answer.answered;
      // How long a charge takes is what those in line wait for; other calls are quicker.
      const charged = permit.token.startsWith("charge:") ? callMs : null;
      await around("gate.give", () => scripts.permitGive(o.gateway, permit.token, charged, mayStillRun));
    },
  };
}
