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
/** As for reserve, and dearer: a batch is a script call, an insert with its sync to disk, and a call to the line. */
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
  /** `begun` by this very call, at this place in the line (0 = not known); absent when it joined what was there. */
  | { outcome: "PAYING"; hold: Hold; clock: SaleClock; begun?: { gateway: string; place: number } }
  | { outcome: "CONFIRMED" | "RELEASED" | "EXPIRED"; hold: Hold; clock: SaleClock }
  /** The same gateway and token were declined before; the answer is that one again. */
  | { outcome: "DECLINED"; hold: Hold; clock: SaleClock; payment: Payment }
  | { outcome: "PAUSED" | "LOST" | "LINE_FULL" };

export const tokenDigest = (gateway: string, token: string | null) => hash("sha256", `${gateway}\n${token ?? ""}`);

type Needs = Pick<Context, "config" | "db" | "log" | "metrics" | "reads" | "sales" | "scripts" | "work">;
type Pin = { key: string; customerId: string; reference: string; referenceBefore: string };
type Pinned = { result: PayResult; clock: SaleClock; epoch: number };
/** What many calls share: they are gathered, so that a batch costs one call of each store. */
interface Gathered {
  ctx: Needs;
  pin(sale: Sale, p: Pin): Promise<Pinned>;
  /** The place in the line, 0 when that is not known; null when the row was not written. */
  insert(row: RowToInsert): Promise<number | null>;
}
const GATHER = { batchMax: BATCH_MAX, waitingMax: WAITING_MAX, enough: ENOUGH, gatherMs: GATHER_MS };

export type PayStage = ReturnType<typeof payStage>;

export function payStage(ctx: Needs) {
  const gathered: Gathered = {
    ctx,
    pin: pinner(ctx),
    insert: coalesce<RowToInsert, number | null>((rows) => insertAndQueue(ctx, rows), GATHER),
  };
  return async (sale: Sale, request: PayRequest): Promise<Paid> => {
    if (!(await lineHasRoom(ctx, request.gateway))) {
      // Who is in the line or through it already only joins what is there.
      const { results } = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, [request.key]));
      if (results[0]?.state === "held") return { outcome: "LINE_FULL" };
    }
    return attempt(gathered, sale, request, "", 3);
  };
}

async function lineHasRoom(ctx: Needs, gateway: string): Promise<boolean> {
  const line = await ctx.reads.line(gateway);
  // Those admitted since the last look count too.
  return line.length++ < ctx.config.gatewayLineMax;
}

function pinner(ctx: Needs): Gathered["pin"] {
  const pins = new Map<string, (p: Pin) => Promise<Pinned>>();
  return (sale, p) => {
    let run = pins.get(sale.id);
    if (!run) {
      run = coalesce((batch: Pin[]) => pinSome(ctx, sale, batch), GATHER);
      pins.set(sale.id, run);
    }
    return run(p).catch(ownFault);
  };
}

async function pinSome(ctx: Needs, sale: Sale, batch: Pin[]): Promise<Pinned[]> {
  let epoch = 0;
  const answer = await around("pay.pin", () =>
    ctx.sales.call(sale, (s) => {
      epoch = s.epoch;
      return ctx.scripts.pay(s, batch);
    }),
  );
  return answer.results.map((result) => ({ result, clock: answer, epoch }));
}

async function insertAndQueue(ctx: Needs, rows: RowToInsert[]): Promise<Array<number | null>> {
  const inserted = await around("pay.row", () => insertPayments(ctx.db, rows)).catch((error) => {
    throw isDataError(error) ? error : new Unavailable("Postgres does not answer", 1000, { cause: error });
  });
  const places = new Map([...inserted].map((reference) => [reference, 0]));
  for (const [gateway, queued] of byGateway(rows.filter((r) => inserted.has(r.reference))))
    await joinLine(
      ctx,
      gateway,
      queued.map((r) => r.reference),
      places,
    );
  return rows.map((r) => places.get(r.reference) ?? null);
}

/** Places in the line by reference. One that is lost is found by reconcile; the payment itself is safe. */
async function joinLine(ctx: Needs, gateway: string, references: string[], places: Map<string, number>): Promise<void> {
  const join = async (some: string[]) => {
    const joined = await around("pay.line", () => ctx.scripts.lineJoin(gateway, some));
    for (const [i, reference] of some.entries()) places.set(reference, joined[i] ?? 0);
  };
  const later = (error: unknown) => ctx.log.warn({ err: error, gateway }, "line not joined; reconcile will");
  await withoutGuilty(join, references, (_, error) => later(error)).catch(later);
  ctx.work.emit("line");
}

async function attempt(
  gathered: Gathered,
  sale: Sale,
  r: PayRequest,
  referenceBefore: string,
  tries: number,
): Promise<Paid> {
  const reference = makeReference(Date.now());
  const { result, clock, epoch } = await gathered.pin(sale, {
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
      const before = await findPayment(gathered.ctx.db, result.hold.reference);
      if (before?.state === "declined" && before.tokenDigest === tokenDigest(r.gateway, r.token)) {
        return { outcome: "DECLINED", hold: result.hold, clock, payment: before };
      }
      // Another caller may have pinned and been declined in between; a few rounds settle it.
      if (tries <= 0) throw new Overloaded("the reservation changes too fast");
      return attempt(gathered, sale, r, result.hold.reference, tries - 1);
    }
    case "PAYING": {
      const place = await begin(gathered, rowOf(sale, r, result.hold, reference, epoch));
      return { outcome: "PAYING", hold: result.hold, clock, begun: { gateway: r.gateway, place } };
    }
  }
}

/** Writes the row of a hold that was pinned; answers the place in the line. */
async function begin({ ctx, insert }: Gathered, row: RowToInsert): Promise<number> {
  const place = await insert(row)
    .catch(async (error) => {
      if (isDataError(error)) await unpin(ctx, row, error);
      throw error;
    })
    .catch(ownFault);
  // Not written: reconcile closed this pin meanwhile, an earlier payment is still live, or Redis was rebuilt. Reconcile
  // gives the hold back.
  if (place === null) throw new Unavailable("the payment was not begun", 2000);
  return place;
}

/** A row that Postgres will never take: the hold is held again at once, as it was. What fails here reconcile does. */
async function unpin(ctx: Needs, row: RowToInsert, error: unknown): Promise<void> {
  ctx.log.error({ err: error, reference: row.reference }, "a payment's row was refused for its data");
  try {
    await settleHolds(ctx, [await writeTombstone(ctx.db, row)]);
  } catch (e) {
    ctx.log.warn({ err: e, reference: row.reference }, "its hold is still pinned; reconcile gives it back");
  }
}

function rowOf(sale: Sale, r: PayRequest, hold: Hold, reference: string, epoch: number): RowToInsert {
  const { lines, amount } = cartOf(sale, hold.lines);
  return {
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
}

function byGateway(rows: RowToInsert[]): Map<string, RowToInsert[]> {
  const out = new Map<string, RowToInsert[]>();
  for (const r of rows) out.set(r.gateway, [...(out.get(r.gateway) ?? []), r]);
  return out;
}
