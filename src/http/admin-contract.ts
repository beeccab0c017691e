/**
 * The shapes of what operators are answered. Each is held to the type of what makes the answer; a test holds real
 * answers to each.
 */
import { z } from "@hono/zod-openapi";
import type { Audit } from "../recover/audit.ts";
import type { Reconciled } from "../recover/reconcile.ts";
import type { ItemCounts } from "../stages/top-up.ts";
import {
  currency,
  durationMs,
  instant,
  language,
  money,
  saleStatusOf,
  shopBody,
  taxPercent,
  termsBody,
} from "./contract.ts";
import type { Rates } from "./request-rates.ts";
import type { SaleFigures } from "./sale-figures.ts";

const count = z.number().int().min(0);
/** Redis and Postgres are not read at one instant: a difference of two counts may be off by a moment. */
const difference = z.number().int();
const ms = z.number().min(0);
const onOrOff = z.enum(["on", "off"]);

const itemFigures = z.object({
  sku: z.string(),
  name: z.string().optional(),
  unitPrice: money.optional(),
  granted: count.openapi({ description: "put on sale, top-ups included" }),
  free: count,
  held: difference.openapi({ description: "in reservations whose units are not claimed" }),
  claimed: count.openapi({ description: "sold, or in a payment that was sent" }),
  sold: count.openapi({ description: "in orders that are not refunded" }),
});

const gateFigures = z.object({
  gateway: z.string(),
  limit: count.openapi({ description: "calls at once, over all instances" }),
  inFlight: count,
  permits: z
    .record(z.string(), count)
    .openapi({ description: "who has them: charge, look, refund, list; kept = after a lost answer" }),
  line: count.openapi({ description: "payments that wait" }),
  callMs: ms.openapi({ description: "how long a call takes, smoothed; 0 before the first" }),
  opensInMs: ms,
  waitMs: ms.openapi({ description: "what the last in line waits, about" }),
  breaker: z.string().openapi({ description: "`open` while the gateway is taken to be away, else `closed`" }),
});

export const saleFiguresView: z.ZodType<SaleFigures> = z
  .object({
    id: z.string(),
    name: z.string(),
    status: saleStatusOf,
    currency,
    holdMs: durationMs,
    maxUnitsPerCustomer: z.number().int(),
    gateways: z.array(z.string()),
    shippingFee: money,
    language: language.nullable(),
    shop: shopBody.optional(),
    terms: termsBody.optional(),
    taxPercent,
    opensAt: instant,
    closesAt: instant,
    serverTime: instant,
    reserving: onOrOff,
    paying: onOrOff,
    epoch: count.openapi({ description: "one more each time the sale was rebuilt in Redis" }),
    items: z.array(itemFigures),
    holds: z.object({ held: count, paying: count }),
    gates: z.array(gateFigures),
    payments: z.object({
      queued: count,
      sending: count,
      action_required: count,
      unknown: count,
      refunding: count,
      attention: count.openapi({ description: "payments that need a person" }),
    }),
    journal: z.object({ length: count, oldestMs: ms }),
    outbox: z.object({ queued: count, sent: count, failed: count, oldestMs: ms }),
  })
  .openapi("SaleFigures");

export const salesFiguresView = z.object({ sales: z.array(saleFiguresView) }).openapi("SalesFigures");

export const toppedUpView: z.ZodType<ItemCounts & { replayed: boolean }> = z
  .object({
    sku: z.string(),
    delta: difference,
    granted: count,
    free: count,
    held: difference,
    claimed: count,
    replayed: z.boolean().openapi({ description: "the key was used before: this is the first result" }),
  })
  .openapi("ToppedUp");

const auditedItem = z.object({
  sku: z.string(),
  name: z.string(),
  granted: count,
  free: count,
  held: difference,
  claimed: count,
  sold: count,
  difference: difference.openapi({ description: "granted - free - held - claimed; 0 when the books balance" }),
  opening: difference,
  toppedUp: difference,
  inPayment: count,
  notPutBack: count.openapi({ description: "refunded and not put back on sale" }),
  putBack: count.openapi({ description: "refunded and free again" }),
});

export const auditView: z.ZodType<Audit> = z
  .object({
    saleId: z.string(),
    at: instant,
    ok: z.boolean(),
    stoppedWhy: z.string().nullable().openapi({ description: "why the sale stands; null while it goes on" }),
    items: z.array(auditedItem),
    charges: z.object({
      captured: count,
      refunded: count,
      withoutOrder: count,
      liabilities: count,
      twice: count,
      amountDiffers: count.openapi({ description: "captured with another amount or currency than we asked for" }),
      refundedUnasked: count.openapi({ description: "refunded at the gateway without our asking" }),
      odd: count.openapi({ description: "in a state of the gateway's that we do not know" }),
      accepted: count.openapi({ description: "differences that a person looked at and accepted" }),
    }),
    orders: z.object({ recorded: count, withoutCharge: count }),
    mails: z.object({ queued: count, sent: count, failed: count, withoutOrder: count }),
    open: z.object({ paying: count, unknown: count, journalLag: count, refunding: count, attention: count }),
    attention: z
      .array(z.object({ reference: z.string(), why: z.string(), since: instant, state: z.string() }))
      .openapi({ description: "payments that wait for a person, the longest waiting first" }),
    unreadable: count.openapi({ description: "records of the gateways' lists that cannot be read" }),
  })
  .openapi("Audit");

export const reconciledView: z.ZodType<Reconciled> = z
  .object({
    lookedUp: count,
    ordersRecorded: count,
    holdsFollowed: count,
    requeued: count,
    waitedTooLong: count,
    refunds: count,
    movesFinished: count,
    strayCharges: count,
  })
  .openapi("Reconciled");

export const mailQueuedView = z.object({ orderId: z.string(), queued: z.literal(true) }).openapi("MailQueued");

const ratesView: z.ZodType<Rates> = z
  .object({ requests: count, granted: count, refused: count, shed: count, failed: count })
  .openapi("Rates", { description: "answers a second, of all processes of this node" });

const pointView = z
  .object({
    atMs: ms,
    rates: ratesView,
    units: z.record(z.string(), z.array(z.array(difference).length(4))).openapi({
      description: "by sale, for each of its first 20 items: free, held, in payment, sold",
    }),
  })
  .openapi("Point", { description: "one second of the past" });

const liveFigures = z.object({
  at: instant,
  sales: z.array(saleFiguresView).optional(),
  rates: ratesView.optional(),
  point: pointView.optional(),
  stopped: z.array(z.string()).optional().openapi({ description: "sales that stand, each with the reason" }),
  unavailable: z.string().optional().openapi({ description: "why there are no figures this second" }),
});

/** The data of `figures`, `history` and `books`, in this order. */
export const liveEventView = z
  .union([liveFigures, z.array(pointView), z.array(auditView)])
  .openapi("LiveEvent", { description: "the data of `figures`, `history` or `books`" });
