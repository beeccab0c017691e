/**
 * pay: pins the hold in Redis (lua/pay.lua), then commits the payment row in Postgres, then takes a place in the
 * gateway's line. The 202 comes after the row. A crash between leaves a pin without a row, which reconcile gives back
 * (rule D), or a row outside the line, which it puts in.
 */

import { hash } from "node:crypto";
import type { Context } from "../context.ts";
import { around } from "../crash-points.ts";
import { Overloaded, Unavailable } from "../domain/errors.ts";
import type { Hold, SaleClock } from "../domain/hold.ts";
import { makeReference } from "../domain/ids.ts";
import type { Contact, ShipTo } from "../domain/order.ts";
import { cartOf, type Sale } from "../domain/sale.ts";
import { findPayment, insertPayments, type Payment, type RowToInsert, writeTombstone } from "../payments/rows.ts";
import { coalesce, withoutGuilty } from "../stores/coalesce.ts";
import { isDataError, ownFault } from "../stores/refused.ts";
import type { PayResult } from "../stores/replies.ts";
import { settleHolds } from "./settle-holds.ts";

const BATCH_MAX = 128;
const WAITING_MAX = 5_000;
/** As for reserve, but a batch costs more: a script call, an insert with its sync to disk, and a call to the line. */
const ENOUGH = 64;
const GATHER_MS = 5;

export interface PayRequest {
  key: string;
  reservationId: string;
  customerId: string;
  gateway: string;
  token: string | null;
  contact: Contact;
  shipTo: ShipTo | null;
  returnUrl: string | null;
  language: string;
}

export type Paid =
  /** `begun` by this very call, at this place in the line (0 = not known); absent when it joined an earlier payment. */
  | { outcome: "PAYING"; hold: Hold; clock: SaleClock; begun?: { gateway: string; place: number } }
  | { outcome: "CONFIRMED" | "RELEASED" | "EXPIRED"; hold: Hold; clock: SaleClock }
  /** The same gateway and token were declined before; the answer is that one again. */
  | { outcome: "DECLINED"; hold: Hold; clock: SaleClock; payment: Payment }
  | { outcome: "PAUSED" | "LOST" | "LINE_FULL" };

export const tokenDigest = (gateway: string, token: string | null) => hash("sha256", `${gateway}\n${token ?? ""}`);

export type PayStage = ReturnType<typeof payStage>;

export function payStage(ctx: Context) {
  type Pin = { key: string; customerId: string; reference: string; referenceBefore: string };
  const pins = new Map<string, (p: Pin) => Promise<{ result: PayResult; clock: SaleClock; epoch: number }>>();

  function pin(sale: Sale, p: Pin) {
    let run = pins.get(sale.id);
    if (!run) {
      run = coalesce(
        async (batch: Pin[]) => {
          let epoch = 0;
          const answer = await around("pay.pin", () =>
            ctx.sales.call(sale, (s) => {
              epoch = s.epoch;
              return ctx.scripts.pay(s, batch);
            }),
          );
          return answer.results.map((result) => ({ result, clock: answer, epoch }));
        },
        { batchMax: BATCH_MAX, waitingMax: WAITING_MAX, enough: ENOUGH, gatherMs: GATHER_MS },
      );
      pins.set(sale.id, run);
    }
    return run(p).catch(ownFault);
  }

  /** Places in the line by reference. One that is lost is found by reconcile; the payment itself is safe. */
  async function joinLine(gateway: string, references: string[], places: Map<string, number>): Promise<void> {
    const join = async (some: string[]) => {
      const joined = await around("pay.line", () => ctx.scripts.lineJoin(gateway, some));
      for (const [i, reference] of some.entries()) places.set(reference, joined[i] ?? 0);
    };
    const later = (error: unknown) => ctx.log.warn({ err: error, gateway }, "line not joined; reconcile will");
    await withoutGuilty(join, references, (_, error) => later(error)).catch(later);
    ctx.work.emit("line");
  }

  /** The place in the line, 0 when that is not known; null when the row was not written. */
  const insert = coalesce<RowToInsert, number | null>(
    async (rows) => {
      const inserted = await around("pay.row", () => insertPayments(ctx.db, rows)).catch((error) => {
        throw isDataError(error) ? error : new Unavailable("Postgres does not answer", 1000, { cause: error });
      });
      const places = new Map([...inserted].map((reference) => [reference, 0]));
      for (const [gateway, queued] of byGateway(rows.filter((r) => inserted.has(r.reference))))
        await joinLine(
          gateway,
          queued.map((r) => r.reference),
          places,
        );
      return rows.map((r) => places.get(r.reference) ?? null);
    },
    { batchMax: BATCH_MAX, waitingMax: WAITING_MAX, enough: ENOUGH, gatherMs: GATHER_MS },
  );

  /** A row that Postgres will never take: the hold is held again at once, as it was. What fails here reconcile does. */
  async function unpin(row: RowToInsert, error: unknown): Promise<void> {
    ctx.log.error({ err: error, reference: row.reference }, "a payment's row was refused for its data");
    try {
      await settleHolds(ctx, [await writeTombstone(ctx.db, row)]);
    } catch (e) {
      ctx.log.warn({ err: e, reference: row.reference }, "its hold is still pinned; reconcile gives it back");
    }
  }

  async function lineHasRoom(gateway: string): Promise<boolean> {
    const line = await ctx.reads.line(gateway);
    // Those admitted since the line was last read count too.
    return line.length++ < ctx.config.gatewayLineMax;
  }

  async function attempt(sale: Sale, r: PayRequest, referenceBefore: string, tries: number): Promise<Paid> {
    const reference = makeReference(Date.now());
    const { result, clock, epoch } = await pin(sale, {
      key: r.key,
      customerId: r.customerId,
      reference,
      referenceBefore,
    });
    switch (result.outcome) {
      case "PAUSED":
      case "LOST":
        return { outcome: result.outcome };
      case "CONFIRMED":
      case "RELEASED":
      case "EXPIRED":
        return { outcome: result.outcome, hold: result.hold, clock };
      case "JOINED":
        return { outcome: "PAYING", hold: result.hold, clock };
      case "DECLINED_BEFORE": {
        const before = await findPayment(ctx.db, result.hold.reference);
        if (before?.state === "declined" && before.tokenDigest === tokenDigest(r.gateway, r.token)) {
          return { outcome: "DECLINED", hold: result.hold, clock, payment: before };
        }
        // Another caller may have pinned and been declined in between; a few rounds settle it.
        if (tries <= 0) throw new Overloaded("the reservation changes too fast");
        return attempt(sale, r, result.hold.reference, tries - 1);
      }
      case "PAYING": {
        const { lines, amount } = cartOf(sale, result.hold.lines);
        const row: RowToInsert = {
          reference,
          pinnedIn: epoch,
          saleId: sale.id,
          reservationId: r.reservationId,
          reservationKey: r.key,
          customerId: r.customerId,
          gateway: r.gateway,
          token: r.token,
          tokenDigest: tokenDigest(r.gateway, r.token),
          amount,
          currency: sale.currency,
          lines,
          contact: r.contact,
          shipTo: r.shipTo,
          returnUrl: r.returnUrl,
          language: r.language,
          state: "queued",
        };
        const place = await insert(row)
          .catch(async (error) => {
            if (isDataError(error)) await unpin(row, error);
            throw error;
          })
          .catch(ownFault);
        // Not written: reconcile closed this pin meanwhile, an earlier payment is still live, or Redis was rebuilt.
        // Reconcile gives the hold back.
        if (place === null) throw new Unavailable("the payment was not begun", 2000);
        return { outcome: "PAYING", hold: result.hold, clock, begun: { gateway: r.gateway, place } };
      }
    }
  }

  return async (sale: Sale, request: PayRequest): Promise<Paid> => {
    if (!(await lineHasRoom(request.gateway))) {
      // A payment that is in the line or through it already is only joined.
      const { results } = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, [request.key]));
      if (results[0]?.state === "held") return { outcome: "LINE_FULL" };
    }
    return attempt(sale, request, "", 3);
  };
}

function byGateway(rows: RowToInsert[]): Map<string, RowToInsert[]> {
  const out = new Map<string, RowToInsert[]>();
  for (const r of rows) out.set(r.gateway, [...(out.get(r.gateway) ?? []), r]);
  return out;
}
