/**
 * Batched reads of payments, orders and places in line: what many requests ask for one by one is read together.
 */
import { inArray } from "drizzle-orm";
import { coalesce } from "../stores/coalesce.ts";
import type { Db } from "../stores/postgres.ts";
import { orders } from "../stores/schema.ts";
import type { Scripts } from "../stores/scripts.ts";
import { findPayments, type Payment } from "./rows.ts";

const TOGETHER = { batchMax: 256, waitingMax: 20_000, enough: 16, gatherMs: 2 };
/** A line as a whole is read no more often than this. */
const LINE_MS = 100;

export interface Line {
  inFlight: number;
  length: number;
  /** How long a call takes, ms; 0 before one was measured. */
  callMs: number;
  opensInMs: number;
}

export type BatchedReads = ReturnType<typeof makeBatchedReads>;

export function makeBatchedReads(db: Db, scripts: Scripts) {
  const places = new Map<string, (reference: string) => Promise<number>>();
  const lines = new Map<string, { at: number; line: Promise<Line> }>();

  return {
    payment: coalesce<string, Payment | undefined>(async (references) => {
      const found = new Map((await findPayments(db, references)).map((p) => [p.reference, p]));
      return references.map((r) => found.get(r));
    }, TOGETHER),

    /** Whether the order's row is written. */
    recorded: coalesce<string, boolean>(async (ids) => {
      const found = new Set(
        (await db.select({ id: orders.id }).from(orders).where(inArray(orders.id, ids))).map((o) => o.id),
      );
      return ids.map((id) => found.has(id));
    }, TOGETHER),

    /** Place in the gateway's line from 1; 0 when it is not in it. */
    place(gateway: string, reference: string): Promise<number> {
      let one = places.get(gateway);
      if (!one) {
        one = coalesce<string, number>(
          async (references) => (await scripts.gateView(gateway, references)).places,
          TOGETHER,
        );
        places.set(gateway, one);
      }
      return one(reference);
    },

    /** The line of a gateway, at most 100 ms old. */
    line(gateway: string): Promise<Line> {
      const seen = lines.get(gateway);
      if (seen && performance.now() - seen.at < LINE_MS) return seen.line;
      const line = scripts
        .gateView(gateway)
        .then((v) => ({ inFlight: v.inFlight, length: v.line, callMs: v.callMs, opensInMs: v.opensInMs }));
      lines.set(gateway, { at: performance.now(), line });
      line.catch(() => lines.delete(gateway));
      return line;
    },
  };
}
