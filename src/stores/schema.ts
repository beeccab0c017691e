import { sql } from "drizzle-orm";
import {
  bigint,
  bigserial,
  boolean,
  check,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  serial,
  text,
  timestamp,
  uniqueIndex,
} from "drizzle-orm/pg-core";
import { ORDER_STATES, PAYMENT_STATES, STOCK_MOVE_STATES } from "../domain/lifecycle.ts";
import type { Contact, OrderLine, SaleDetails, ShipTo } from "../domain/order.ts";

const at = (name: string) => timestamp(name, { withTimezone: true, precision: 3 });
const ms = (name: string) => bigint(name, { mode: "number" });
const oneOf = (column: string, words: readonly string[]) =>
  sql.raw(`${column} in (${words.map((w) => `'${w}'`).join(", ")})`);

/**
 * Secrets that every instance shares, such as the one reservation ids are made under. Written once, by the first start.
 */
export const secrets = pgTable("secrets", {
  name: text("name").primaryKey(),
  value: text("value").notNull(),
});

/** A sale and its settings. Admin routes write it; `version` orders the copies that Redis gets (lua/configure.lua). */
export const sales = pgTable("sales", {
  id: text("id").primaryKey(),
  /** Short number inside reservation ids. */
  no: serial("no").notNull().unique(),
  name: text("name").notNull(),
  currency: text("currency").notNull(),
  language: text("language"),
  opensAt: at("opens_at").notNull(),
  closesAt: at("closes_at").notNull(),
  holdMs: ms("hold_ms").notNull(),
  maxUnitsPerCustomer: integer("max_units_per_customer").notNull(),
  gateways: jsonb("gateways").$type<string[]>().notNull(),
  shippingFee: ms("shipping_fee").notNull(),
  details: jsonb("details").$type<SaleDetails>().notNull().default({ taxPercent: 0 }),
  reserving: boolean("reserving").notNull().default(true),
  /** Redis clock at which payments and hold clocks were stopped; 0 = running. */
  pausedAtMs: ms("paused_at_ms").notNull().default(0),
  /** How long the sale's clock has stood still or been set back so far. */
  shiftMs: ms("shift_ms").notNull().default(0),
  version: integer("version").notNull().default(1),
  /** Settings as asked for at creation, to tell a repeat from another sale under the same id. */
  createdFrom: text("created_from").notNull(),
  createdAt: at("created_at").notNull().defaultNow(),
});

/**
 * Which Redis holds a sale (rules G and I). Rebuild raises the epoch under `for update`; every claim reads it `for
 * share`.
 */
export const epochs = pgTable("epochs", {
  saleId: text("sale_id")
    .primaryKey()
    .references(() => sales.id),
  epoch: integer("epoch").notNull().default(0),
  runId: text("run_id").notNull().default(""),
  replicationId: text("replication_id").notNull().default(""),
  /**
   * Why the sale stands until a person has looked (recover/restored.ts); null while it sells. Every write that must not
   * happen meanwhile asks here.
   */
  stoppedWhy: text("stopped_why"),
});

/**
 * One row, raised once a second while anybody runs. Redis remembers the highest: a lower one here is an older copy of
 * the database.
 */
export const beats = pgTable("beats", {
  id: integer("id").primaryKey(),
  beat: ms("beat").notNull().default(0),
  beatenAt: at("beaten_at").notNull().defaultNow(),
});

/**
 * The highest sequence number of a sale's journal that Postgres has. Apart from `epochs`, so that persist and claims do
 * not wait for each other.
 */
export const journalPositions = pgTable("journal_positions", {
  saleId: text("sale_id")
    .primaryKey()
    .references(() => sales.id),
  seq: ms("seq").notNull().default(0),
});

/**
 * Stock per item. `granted` is raised by top-ups, `claimed` by the transaction before a gateway is called: the last
 * guard.
 */
export const items = pgTable(
  "items",
  {
    saleId: text("sale_id")
      .notNull()
      .references(() => sales.id),
    sku: text("sku").notNull(),
    position: integer("position").notNull(),
    name: text("name").notNull(),
    unitPrice: ms("unit_price").notNull(),
    /** Null: the sale's. */
    taxPercent: integer("tax_percent"),
    granted: integer("granted").notNull(),
    claimed: integer("claimed").notNull().default(0),
  },
  (t) => [
    primaryKey({ columns: [t.saleId, t.sku] }),
    check("claimed_within_granted", sql`${t.claimed} >= 0 and ${t.claimed} <= ${t.granted}`),
  ],
);

/**
 * Mirror of the holds, written by persist from the journal, read by rebuild and support. A row moves only forward in
 * (epoch, seq). Steady state: one row per reservation ever made. The key is the part of the public id after its last
 * dot, less the MAC (ids.ts).
 */
export const reservations = pgTable(
  "reservations",
  {
    saleId: text("sale_id").notNull(),
    key: text("key").notNull(),
    customerId: text("customer_id").notNull(),
    /** One letter, see lifecycle.ts. */
    state: text("state").notNull(),
    lines: text("lines").notNull(),
    reference: text("reference").notNull(),
    deadlineMs: ms("deadline_ms").notNull(),
    epoch: integer("epoch").notNull(),
    seq: ms("seq").notNull(),
    heldAt: at("held_at").notNull(),
    changedAt: at("changed_at").notNull(),
  },
  // the only index, since every reservation pays for each; rebuild reads all holds of a sale
  (t) => [primaryKey({ columns: [t.saleId, t.key] })],
);

/** A decision of a person about a payment on which the gateway and our books do not agree. */
export interface Settled {
  action: "accept" | "refund" | "not_charged";
  reason: string;
  /** As it was then: the state, and why a person had to look. */
  from: string;
  why: string | null;
}

/**
 * One attempt to pay. Committed before the 202; contact and address live here only. Drained by charge and reconcile.
 */
export const payments = pgTable(
  "payments",
  {
    reference: text("reference").primaryKey(),
    saleId: text("sale_id").notNull(),
    reservationId: text("reservation_id").notNull(),
    reservationKey: text("reservation_key").notNull(),
    customerId: text("customer_id").notNull(),
    gateway: text("gateway").notNull(),
    /** Kept until the gateway has said how it ended (rule A), then removed; the digest stays to know a repeat. */
    token: text("token"),
    tokenDigest: text("token_digest").notNull(),
    amount: ms("amount").notNull(),
    currency: text("currency").notNull(),
    lines: jsonb("lines").$type<OrderLine[]>().notNull(),
    contact: jsonb("contact").$type<Contact>().notNull(),
    shipTo: jsonb("ship_to").$type<ShipTo>(),
    returnUrl: text("return_url"),
    language: text("language").notNull(),
    state: text("state").$type<(typeof PAYMENT_STATES)[number]>().notNull(),
    /** Raised by each taking-over; an outcome is written only under the number it was asked with. */
    fence: integer("fence").notNull().default(0),
    /** Units of this payment are in items.claimed. */
    claimed: boolean("claimed").notNull().default(false),
    /** Captured after it had ended: on its way to be refunded, and not the reservation's live payment. */
    late: boolean("late").notNull().default(false),
    sends: integer("sends").notNull().default(0),
    declineCode: text("decline_code"),
    chargeId: text("charge_id"),
    actionUrl: text("action_url"),
    /** Why a person is needed, e.g. the gateway charged another amount. */
    attention: text("attention"),
    /** Since when the gateway has said nothing about it that can be used: the longer, the rarer it is asked. */
    troubledSince: at("troubled_since"),
    /** What the gateway says it captured, when that is not what was asked for. */
    capturedAmount: ms("captured_amount"),
    capturedCurrency: text("captured_currency"),
    /** What a person decided about it (http/admin-payments.ts). */
    settled: jsonb("settled").$type<Settled>(),
    queuedAt: at("queued_at").notNull().defaultNow(),
    /** Our last send to the gateway; after its lease the call cannot be running any more. */
    sentAt: at("sent_at"),
    firstSentAt: at("first_sent_at"),
    actionDeadline: at("action_deadline"),
    /** When reconcile asks next, and when the gateway was last asked. */
    checkAt: at("check_at"),
    lookedAt: at("looked_at"),
    capturedAt: at("captured_at"),
    endedAt: at("ended_at"),
  },
  (t) => [
    check("payment_state", oneOf("state", PAYMENT_STATES)),
    check("payment_amount", sql`${t.amount} >= 0`),
    check(
      "open_payments_are_claimed",
      sql`${t.claimed} or ${t.state} not in ('sending', 'action_required', 'unknown', 'captured')`,
    ),
    // rule H: at most one payment per reservation that is not known to be unpaid
    uniqueIndex("payments_one_live")
      .on(t.reservationId)
      .where(sql`state not in ('declined', 'cancelled') and not late`),
    // a reservation's attempts, newest last
    index("payments_by_reservation").on(t.reservationId, t.queuedAt),
    // reconcile's work list
    index("payments_to_check")
      .on(t.checkAt)
      .where(sql`state in ('queued', 'sending', 'action_required', 'unknown', 'refunding')`),
    // captured and not yet an order
    index("payments_captured").on(t.capturedAt).where(sql`state = 'captured'`),
    index("payments_by_sale").on(t.saleId, t.state),
    // the few that need a person, and late captures that are followed up
    index("payments_with_attention").on(t.capturedAt).where(sql`attention is not null`),
  ],
);

/** A recorded order. Inserted once per reservation by persist or reconcile from the payment's snapshot. */
export const orders = pgTable(
  "orders",
  {
    id: text("id").primaryKey(),
    /** Insertion order, for the cursor. */
    no: bigserial("no", { mode: "number" }).notNull(),
    reservationId: text("reservation_id").notNull().unique(),
    reference: text("reference").notNull(),
    saleId: text("sale_id").notNull(),
    customerId: text("customer_id").notNull(),
    status: text("status").$type<(typeof ORDER_STATES)[number]>().notNull().default("confirmed"),
    amount: ms("amount").notNull(),
    currency: text("currency").notNull(),
    gateway: text("gateway").notNull(),
    chargeId: text("charge_id"),
    contact: jsonb("contact").$type<Contact>().notNull(),
    shipTo: jsonb("ship_to").$type<ShipTo>(),
    refundReason: text("refund_reason"),
    restock: boolean("restock"),
    confirmedAt: at("confirmed_at").notNull(),
    recordedAt: at("recorded_at").notNull().defaultNow(),
    refundedAt: at("refunded_at"),
    /** Written by `fukubukuro recover` from the gateway's list or a hold: its contact may not be known. */
    recovered: boolean("recovered").notNull().default(false),
  },
  (t) => [
    check("order_status", oneOf("status", ORDER_STATES)),
    // one order a payment: the primary key says it for both
    check("order_of_payment", sql`${t.id} = 'ord_' || ${t.reference}`),
    index("orders_by_sale").on(t.saleId, t.no),
    index("orders_by_no").on(t.no),
  ],
);

/** Joins a payment and its order by the orders' primary key. */
export const orderOfPayment = sql`${orders.id} = 'ord_' || ${payments.reference}`;

/** What was ordered, with the names and prices of that moment. */
export const orderLines = pgTable(
  "order_lines",
  {
    orderId: text("order_id")
      .notNull()
      .references(() => orders.id),
    sku: text("sku").notNull(),
    name: text("name").notNull(),
    quantity: integer("quantity").notNull(),
    unitPrice: ms("unit_price").notNull(),
  },
  (t) => [primaryKey({ columns: [t.orderId, t.sku] })],
);

/** Messages that follow an order's commit. Written with the order; drained by the outbox sender at least once. */
export const outbox = pgTable(
  "outbox",
  {
    orderId: text("order_id")
      .notNull()
      .references(() => orders.id),
    kind: text("kind").notNull(),
    saleId: text("sale_id").notNull(),
    language: text("language").notNull(),
    state: text("state").$type<"queued" | "sent" | "failed">().notNull().default("queued"),
    attempts: integer("attempts").notNull().default(0),
    nextAt: at("next_at").notNull().defaultNow(),
    sentAt: at("sent_at"),
    lastError: text("last_error"),
  },
  (t) => [
    primaryKey({ columns: [t.orderId, t.kind] }),
    index("outbox_queue").on(t.nextAt).where(sql`state = 'queued'`),
    index("outbox_by_sale").on(t.saleId, t.state),
  ],
);

/**
 * Every stock change has an id (rule K). `granted`: counted in items.granted, Redis may not have it yet. `pending`:
 * units to be taken away, Redis first (rule L). `done`: both. A restock has the order it came from.
 */
export const stockMoves = pgTable(
  "stock_moves",
  {
    id: text("id").primaryKey(),
    saleId: text("sale_id").notNull(),
    sku: text("sku").notNull(),
    delta: integer("delta").notNull(),
    reason: text("reason").notNull(),
    idempotencyKey: text("idempotency_key"),
    orderId: text("order_id"),
    /** Paid units of this customer that end with a refund. */
    customerId: text("customer_id"),
    customerUnits: integer("customer_units").notNull().default(0),
    state: text("state").$type<(typeof STOCK_MOVE_STATES)[number]>().notNull(),
    result: jsonb("result").$type<Record<string, unknown>>(),
    createdAt: at("created_at").notNull().defaultNow(),
  },
  (t) => [
    check("stock_move_state", oneOf("state", STOCK_MOVE_STATES)),
    uniqueIndex("stock_moves_key").on(t.saleId, t.idempotencyKey),
    index("stock_moves_open").on(t.saleId).where(sql`state in ('pending', 'granted')`),
    index("stock_moves_by_sale").on(t.saleId, t.sku),
  ],
);

/** A gateway's gate that existed once: its first opening needs no wait, every later Redis does (rule F). */
export const gates = pgTable("gates", {
  gateway: text("gateway").primaryKey(),
  /**
   * Set by a stop in good order of a stack that ran alone: no call was out, so the next start need not wait (rule F).
   */
  quiet: boolean("quiet").notNull().default(false),
  /** Where the walk through the gateway's own list of charges stands. */
  listCursor: text("list_cursor"),
  /**
   * Until when a worker sends nothing, because the gateway gave no definite answers; told by the worker, read by the
   * cockpit.
   */
  breakerUntil: at("breaker_until"),
});

/**
 * Charges found in a gateway's list that no payment of ours explains. Written by reconcile, read by the audit and
 * people.
 */
export const strayCharges = pgTable(
  "stray_charges",
  {
    gateway: text("gateway").notNull(),
    reference: text("reference").notNull(),
    chargeId: text("charge_id").notNull(),
    reservationId: text("reservation_id").notNull(),
    amount: ms("amount").notNull(),
    currency: text("currency").notNull(),
    foundAt: at("found_at").notNull().defaultNow(),
    refundedAt: at("refunded_at"),
    /** What a person decided: `order`, `refund`, or `foreign` when it is none of ours; null while it is a liability. */
    resolution: text("resolution"),
  },
  (t) => [primaryKey({ columns: [t.gateway, t.reference] })],
);

/** Journal entries that could not be applied. They wait for a person; nothing is thrown away. */
export const deadLetters = pgTable(
  "dead_letters",
  {
    saleId: text("sale_id").notNull(),
    entryId: text("entry_id").notNull(),
    body: text("body").notNull(),
    error: text("error").notNull(),
    at: at("at").notNull().defaultNow(),
  },
  (t) => [primaryKey({ columns: [t.saleId, t.entryId] })],
);

/** What operators did: one row per admin call that changes something. */
export const adminLog = pgTable("admin_log", {
  id: bigserial("id", { mode: "number" }).primaryKey(),
  at: at("at").notNull().defaultNow(),
  action: text("action").notNull(),
  saleId: text("sale_id"),
  detail: jsonb("detail").$type<Record<string, unknown>>().notNull(),
});
