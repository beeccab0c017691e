/** The scripts of a gateway's gate: its line and its permits. They stand in a slot of their own (keys.ts). */
import { Unavailable } from "../domain/errors.ts";
import { gateKeys } from "./keys.ts";
import type { RunScript } from "./lua.ts";
import type { Redis } from "./redis.ts";
import { type PermitResult, parsePermit, wholeOf, wordOf } from "./replies.ts";

/**
 * What the permits that are out are for; `kept` = the call was given up unanswered and may still be running
 * (lua/gate_view.lua).
 */
export const PERMIT_USES = ["charge", "look", "refund", "list", "kept"] as const;
export type PermitUse = (typeof PERMIT_USES)[number];

/** A reply that begins with OK, without it. */
function afterOk(reply: string[]): string[] {
  wordOf(reply[0], ["OK"]);
  return reply.slice(1);
}

export function gateScripts(redis: Redis, run: RunScript) {
  return {
    /** Places in the line, from 1. */
    async lineJoin(gateway: string, references: string[]): Promise<number[]> {
      const k = gateKeys(gateway);
      return afterOk(await run("line_join", [k.line, k.gate], references)).map((n) => wholeOf(n, "a place"));
    },

    async lineTake(gateway: string, max: number): Promise<string[]> {
      return afterOk(await run("line_take", [gateKeys(gateway).line], [max]));
    },

    async permitTake(
      gateway: string,
      a: { limit: number; leaseMs: number; token: string; kind: "charge" | "urgent"; fresh: boolean },
    ): Promise<PermitResult> {
      const instance = redis.instance();
      if (!instance) throw new Unavailable("Redis is away");
      const k = gateKeys(gateway);
      const args = [a.limit, a.leaseMs, a.token, a.kind, instance.runId, a.fresh ? 1 : 0];
      return parsePermit(await run("permit_take", [k.permits, k.line, k.urgent, k.gate], args));
    },

    /** `kept`: its call was given up unanswered, and the permit stays out until its lease ends. */
    async permitGive(gateway: string, token: string, callMs: number | null, kept = false): Promise<void> {
      const k = gateKeys(gateway);
      const args = [token, callMs === null ? "" : Math.round(callMs), kept ? 1 : ""];
      afterOk(await run("permit_give", [k.permits, k.urgent, k.gate], args));
    },

    /** Figures of the gate at one instant, and the places of these payments, 0 for one that is not in the line. */
    async gateView(gateway: string, references: string[] = []) {
      const k = gateKeys(gateway);
      const reply = afterOk(await run("gate_view", [k.permits, k.line, k.gate], references));
      const [inFlight = 0, line = 0, callMs = 0, opensInMs = 0, ...rest] = reply.map((n) => wholeOf(n, "a figure"));
      const permits = Object.fromEntries(PERMIT_USES.map((use, i) => [use, rest[i] ?? 0])) as Record<PermitUse, number>;
      return { inFlight, line, callMs, opensInMs, permits, places: rest.slice(PERMIT_USES.length) };
    },
  };
}
