/** The shapes of the HTTP contract: one source for validation and for /openapi.json. */
import { z } from "@hono/zod-openapi";
import { type FieldError, invalid } from "./problem.ts";
import { email, instant, multilineText, text, visibleAscii, webUrl } from "./texts.ts";

export const LINES_MAX = 10;
export const QUANTITY_MAX = 99;
const MONEY_MAX = 1_000_000_000_000;
const STOCK_MAX = 10_000_000;
export const NAME = /^[A-Za-z0-9._-]{1,64}$/;

const name = z.string().regex(NAME, "must be 1-64 characters of a-z A-Z 0-9 . _ -");
const money = z.number().int().min(0).max(MONEY_MAX).openapi({ description: "minor units, tax included" });
const durationMs = z.number().int();
const currency = z
  .string()
  .regex(/^[A-Z]{3}$/, "must be an ISO 4217 code such as JPY")
  .openapi({ example: "JPY" });

const line = z.strictObject({ sku: name, quantity: z.number().int().min(1).max(QUANTITY_MAX) });
export const reserveBody = z
  .strictObject({ lines: z.array(line).min(1).max(LINES_MAX) })
  .refine((b) => new Set(b.lines.map((l) => l.sku)).size === b.lines.length, {
    path: ["lines"],
    message: "a sku may be named once",
  })
  .openapi("ReserveRequest");

export const confirmBody = z
  .strictObject({
    payment: z.strictObject({ gateway: text(32).optional(), token: visibleAscii(255).optional() }).default({}),
    contact: z.strictObject({ email, name: text(200).min(1), phone: text(40).optional() }),
    shipTo: z.strictObject({ postalCode: text(20).optional(), address: multilineText(500).optional() }).optional(),
    returnUrl: webUrl(2000).optional(),
  })
  .openapi("ConfirmRequest");

/** A text of the shop's, in one language for everyone or in both. */
const inBoth = (one: z.ZodString) => z.union([one.min(1), z.strictObject({ ja: one.min(1), en: one.min(1) })]);
const ownText = (max: number) => inBoth(text(max));
const ownLines = (max: number) => inBoth(multilineText(max));
const language = z.enum(["ja", "en"]);
/** Whole percent, contained in the prices (総額). */
const taxPercent = z.number().int().min(0).max(100);

export const shopBody = z
  .strictObject({
    name: ownText(100),
    address: ownLines(300).optional(),
    phone: text(40).optional(),
    email: email.optional(),
    invoiceNumber: z
      .string()
      .regex(/^T\d{13}$/, "must be T and 13 digits")
      .optional()
      .openapi({ description: "registration number of a qualified invoice issuer (適格請求書発行事業者)" }),
  })
  .openapi("Shop");

export const termsBody = z
  .strictObject({
    payment: ownLines(1000).optional(),
    delivery: ownLines(1000).optional(),
    cancellation: ownLines(2000).optional(),
    notes: ownLines(2000).optional(),
  })
  .openapi("Terms", {
    description:
      "what the last step before paying must show (特定商取引法 第十二条の六), beside items, total and period",
  });

const ITEMS_MAX = 1_000;
const namedOnce = (items: Array<{ sku: string }>) => new Set(items.map((i) => i.sku)).size === items.length;

export const saleBody = z
  .strictObject({
    id: name,
    name: text(200).min(1),
    currency,
    opensAt: instant,
    closesAt: instant,
    holdMs: durationMs.min(1_000).max(7 * 86_400_000),
    maxUnitsPerCustomer: z.number().int().min(1).max(1_000_000),
    gateways: z.array(text(32).min(1)).min(1).max(10).optional(),
    shippingFee: money.optional(),
    language: language.optional(),
    shop: shopBody.optional(),
    terms: termsBody.optional(),
    taxPercent: taxPercent
      .optional()
      .openapi({ description: "of items that name none, and of the shipping fee; 10 for JPY, else 0" }),
    items: z
      .array(
        z.strictObject({
          sku: name,
          name: text(200).min(1),
          unitPrice: money,
          taxPercent: taxPercent.optional(),
          stock: z.number().int().min(0).max(STOCK_MAX),
        }),
      )
      .min(1)
      .max(ITEMS_MAX)
      .refine(namedOnce, "a sku may be named once"),
  })
  .refine((b) => Date.parse(b.closesAt) > Date.parse(b.opensAt), {
    path: ["closesAt"],
    message: "must be after opensAt",
  })
  .openapi("CreateSale");
export type SaleBody = z.infer<typeof saleBody>;

export const patchBody = z
  .strictObject({
    reserving: z.enum(["on", "off"]).optional(),
    paying: z.enum(["on", "off"]).optional(),
    closesAt: instant.optional(),
    extendHoldsMs: durationMs.min(1).max(86_400_000).optional(),
    name: text(200).min(1).optional(),
    shop: shopBody.optional(),
    terms: termsBody.optional(),
    items: z
      .array(z.strictObject({ sku: name, name: text(200).min(1) }))
      .min(1)
      .max(ITEMS_MAX)
      .refine(namedOnce, "a sku may be named once")
      .optional()
      .openapi({ description: "new names; orders keep the one they were made under" }),
  })
  .refine((b) => Object.keys(b).length > 0, { message: "name at least one thing to change" })
  .openapi("PatchSale");
export type PatchBody = z.infer<typeof patchBody>;

export const topUpBody = z
  .strictObject({
    delta: z
      .number()
      .int()
      .min(-STOCK_MAX)
      .max(STOCK_MAX)
      .refine((n) => n !== 0, "must not be 0"),
    reason: text(500).min(1),
  })
  .openapi("TopUp");

export const refundBody = z.strictObject({ reason: text(500).min(1), restock: z.boolean() }).openapi("Refund");

export const resendBody = z.strictObject({ reason: text(500).min(1) }).openapi("ResendMail");

const settleAction = z.enum(["accept", "refund", "not_charged"]);
export const settleBody = z
  .strictObject({
    action: settleAction.openapi({
      description:
        "accept: it stands as paid with the payment's own amount; refund: what the gateway took goes back; not_charged: the shop has no money of it (any more)",
    }),
    reason: text(500).min(1),
    restock: z.boolean().default(true).openapi({ description: "of a refund of an order: its units go back on sale" }),
  })
  .openapi("SettlePayment");
export type SettleBody = z.infer<typeof settleBody>;

export const paymentsQuery = z.strictObject({
  saleId: name.optional(),
  attention: z
    .enum(["true", "false"])
    .optional()
    .openapi({ description: "true: those on which a person has to decide" }),
  cursor: text(40).optional(),
  limit: z.coerce.number().int().min(1).max(200).default(50),
});

export const ordersQuery = z.strictObject({
  saleId: name.optional(),
  format: z
    .enum(["json", "csv"])
    .optional()
    .openapi({ description: "for links, which cannot set Accept; wins over it" }),
  cursor: text(40).optional(),
  limit: z.coerce.number().int().min(1).max(200).default(50),
});

export const logQuery = z.strictObject({
  saleId: name.optional(),
  limit: z.coerce.number().int().min(1).max(200).default(50),
});

// ---- answers -------------------------------------------------------------------------------------------------------

const saleStatusOf = z.enum(["scheduled", "open", "paused", "closed"]);
const priced = z.object({ sku: z.string(), quantity: z.number().int(), unitPrice: money });
export const saleView = z
  .object({
    id: z.string(),
    name: z.string(),
    status: saleStatusOf,
    opensAt: instant,
    closesAt: instant,
    serverTime: instant,
    currency,
    holdMs: durationMs,
    maxUnitsPerCustomer: z.number().int(),
    gateways: z.array(z.string()),
    shippingFee: money,
    items: z.array(
      z.object({
        sku: z.string(),
        name: z.string(),
        unitPrice: money,
        availability: z.enum(["available", "all_held", "sold_out"]),
        free: z.number().int(),
      }),
    ),
    nextReleaseAt: instant.nullable(),
  })
  .openapi("Sale");
export const reservationView = z
  .object({
    id: z.string(),
    saleId: z.string(),
    status: z.enum(["held", "paying", "confirmed", "released", "expired"]),
    lines: z.array(priced),
    amount: money,
    currency,
    expiresAt: instant.optional(),
    serverTime: instant,
    payment: z
      .object({
        id: z.string(),
        status: z.string(),
        position: z.number().int().optional(),
        etaMs: durationMs.optional(),
        actionUrl: z.string().optional(),
        declineCode: z.string().optional(),
      })
      .optional(),
    orderId: z.string().optional(),
    recorded: z.boolean().optional(),
  })
  .openapi("Reservation");
export const reservationsView = z.object({ reservations: z.array(reservationView) }).openapi("Reservations");
export const orderView = z
  .object({
    id: z.string(),
    reservationId: z.string(),
    saleId: z.string(),
    customerId: z.string(),
    status: z.enum(["confirmed", "refunding", "refunded"]),
    lines: z.array(priced.extend({ name: z.string() })),
    amount: money,
    currency,
    payment: z.object({ gateway: z.string(), reference: z.string(), chargeId: z.string().nullable() }),
    contact: z.object({ email: z.string(), name: z.string(), phone: z.string().optional() }),
    shipTo: z.object({ postalCode: z.string().optional(), address: z.string().optional() }).nullable(),
    confirmedAt: instant,
    recordedAt: instant,
  })
  .openapi("Order");
export const ordersView = z.object({ orders: z.array(orderView), nextCursor: z.string().nullable() }).openapi("Orders");
export const paymentView = z
  .object({
    reference: z.string(),
    saleId: z.string(),
    reservationId: z.string(),
    customerId: z.string(),
    gateway: z.string(),
    state: z.string(),
    amount: money,
    currency,
    captured: z.object({ amount: z.number().int(), currency: z.string() }).nullable().openapi({
      description: "what the gateway says it captured, when that is not what was asked for",
    }),
    chargeId: z.string().nullable(),
    needsPerson: z.boolean(),
    why: z.string().nullable(),
    since: instant,
    checkAt: instant.nullable().openapi({ description: "when the gateway is asked next" }),
    orderId: z.string().nullable(),
    settled: z.object({ action: z.string(), reason: z.string() }).nullable(),
    actions: z.array(settleAction).openapi({ description: "what may be decided about it now" }),
  })
  .openapi("Payment");
export const paymentsView = z
  .object({ payments: z.array(paymentView), nextCursor: z.string().nullable() })
  .openapi("Payments");
export const logView = z
  .object({
    entries: z.array(
      z.object({
        at: instant,
        action: z.string(),
        saleId: z.string().nullable(),
        detail: z.record(z.string(), z.unknown()),
      }),
    ),
  })
  .openapi("AdminLog");
export const aliveView = z.object({ status: z.literal("ok") }).openapi("Alive");
export const readyView = z.object({ status: z.literal("ready") }).openapi("Ready");

export { currency, durationMs, instant, language, money, saleStatusOf, taxPercent };

// ---- checks --------------------------------------------------------------------------------------------------------

/** `["lines", 0, "sku"]` -> `lines[0].sku` */
function pathOf(path: ReadonlyArray<PropertyKey>): string {
  return path.reduce<string>(
    (at, part) => (typeof part === "number" ? `${at}[${part}]` : at === "" ? String(part) : `${at}.${String(part)}`),
    "",
  );
}

type Issue = z.core.$ZodIssue;

/** A union's fault is that of the branch that was meant: the one that has the value's own type. */
function issuesOf(issue: Issue): Issue[] {
  if (issue.code !== "invalid_union") return [issue];
  const meant = issue.errors.find((branch) => !branch.some((i) => i.code === "invalid_type" && i.path.length === 0));
  return meant?.flatMap((i) => issuesOf({ ...i, path: [...issue.path, ...i.path] })) ?? [issue];
}

/** Parses by a schema or throws INVALID_REQUEST with the paths of the faults. */
export function check<T extends z.ZodType>(schema: T, value: unknown): z.output<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw invalid(
    parsed.error.issues
      .flatMap(issuesOf)
      .flatMap((i): FieldError[] =>
        i.code === "unrecognized_keys"
          ? i.keys.map((k) => ({ path: pathOf([...i.path, k]), message: "unknown field" }))
          : [{ path: pathOf(i.path), message: i.message }],
      ),
  );
}

/**
 * The hot route's check of `reserveBody`, by hand: the library's halves the speed of an echo
 * (docs/measurements.md#validation). A test holds both to the same verdict. Answers the lines as Redis takes them:
 * `sku:quantity,...` in order of sku.
 */
export function checkReserveBody(body: unknown): string {
  const errors: FieldError[] = [];
  const lines = (body as { lines?: unknown } | null)?.lines;
  if (typeof body !== "object" || body === null || Array.isArray(body))
    throw invalid([{ path: "", message: "must be an object" }]);
  for (const k of Object.keys(body)) if (k !== "lines") errors.push({ path: k, message: "unknown field" });
  if (!Array.isArray(lines) || lines.length < 1 || lines.length > LINES_MAX)
    throw invalid([...errors, { path: "lines", message: `must be a list of 1 to ${LINES_MAX} lines` }]);
  for (let i = 0; i < lines.length; i++) checkLine(lines[i], i, errors);
  if (errors.length > 0) throw invalid(errors);
  if (lines.length === 1) return `${lines[0].sku}:${lines[0].quantity}`;
  const sorted = [...(lines as Array<{ sku: string; quantity: number }>)].sort((a, b) => (a.sku < b.sku ? -1 : 1));
  if (sorted.some((l, i) => l.sku === sorted[i + 1]?.sku))
    throw invalid([{ path: "lines", message: "a sku may be named once" }]);
  return sorted.map((l) => `${l.sku}:${l.quantity}`).join(",");
}

function checkLine(line: unknown, i: number, errors: FieldError[]): void {
  if (typeof line !== "object" || line === null || Array.isArray(line)) {
    errors.push({ path: `lines[${i}]`, message: "must be an object" });
    return;
  }
  const { sku, quantity } = line as { sku?: unknown; quantity?: unknown };
  for (const k of Object.keys(line))
    if (k !== "sku" && k !== "quantity") errors.push({ path: `lines[${i}].${k}`, message: "unknown field" });
  if (typeof sku !== "string" || !NAME.test(sku))
    errors.push({ path: `lines[${i}].sku`, message: "must be 1-64 characters of a-z A-Z 0-9 . _ -" });
  if (!Number.isInteger(quantity) || (quantity as number) < 1 || (quantity as number) > QUANTITY_MAX) {
    errors.push({ path: `lines[${i}].quantity`, message: `must be a whole number from 1 to ${QUANTITY_MAX}` });
  }
}

/** As the document tells it. */
export const IDEMPOTENCY_KEY_HEADER = {
  description: "1-64 visible ASCII characters; the same key again is the same request, done once",
  required: true,
  example: "cart-4711",
};
const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,64}$/;
export function checkIdempotencyKey(header: string | undefined): string {
  if (header !== undefined && IDEMPOTENCY_KEY.test(header)) return header;
  throw invalid([{ path: "Idempotency-Key", message: "this header is required: 1-64 visible ASCII characters" }]);
}
