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

export interface Gate {
  gateway: string;
  limit: number;
  take(kind: "charge" | "urgent"): Promise<Permit | "EMPTY" | "BUSY" | { opensInMs: number }>;
  /** Takes an urgent permit, asking again until `waitMs` is over; null when none came free. */
  takeUrgent(waitMs: number): Promise<Permit | null>;
  /** Gives the permit back if the answer is definite; after `unknown` it lapses with its lease. */
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
    take: (kind) => take(kind, nanoid()),
    async takeUrgent(waitMs) {
      const token = nanoid(); // kept while asking, so that the place of an urgent call stands
      for (const until = Date.now() + waitMs; ; ) {
        const got = await take("urgent", token);
        if (typeof got === "object" && "token" in got) return got;
        if (Date.now() >= until) return null;
        await pause(URGENT_POLL_MS + Math.random() * URGENT_POLL_MS);
      }
    },
    async settle(permit, answer, callMs) {
      if (answer?.outcome === "unknown") return;
      await around("gate.give", () => scripts.permitGive(o.gateway, permit.token, callMs));
    },
  };
}
