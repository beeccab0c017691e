/** Payments on which the gateway and our books do not agree: the list of them for a person, and the ways out. */
import { and, desc, eq, lt, sql } from "drizzle-orm";
import type { Context as Http } from "hono";
import { orderIdOf } from "../domain/ids.ts";
import { DENIED, findPayment, needsPerson, type Payment } from "../payments/rows.ts";
import { settleByHand } from "../recover/settle-by-hand.ts";
import { settleHolds } from "../stages/settle-holds.ts";
import { payments } from "../stores/schema.ts";
import * as contract from "./contract.ts";
import { check } from "./contract.ts";
import type { OperatorDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import { Problem } from "./problem.ts";
import type { RouteSpec } from "./route-spec.ts";

type Row = { payment: Payment; needsPerson: boolean; hasOrder: boolean };

function view({ payment: p, needsPerson: needs, hasOrder }: Row) {
  const captured = p.capturedAmount === null ? null : { amount: p.capturedAmount, currency: p.capturedCurrency ?? "" };
  return {
    reference: p.reference,
    saleId: p.saleId,
    reservationId: p.reservationId,
    customerId: p.customerId,
    gateway: p.gateway,
    state: p.state,
    amount: p.amount,
    currency: p.currency,
    captured,
    chargeId: p.chargeId,
    needsPerson: needs,
    why: p.attention,
    since: (p.troubledSince ?? p.capturedAt ?? p.sentAt ?? p.queuedAt).toISOString(),
    checkAt: p.checkAt?.toISOString() ?? null,
    orderId: hasOrder ? orderIdOf(p.reference) : null,
    settled: p.settled && { action: p.settled.action, reason: p.settled.reason },
    /** What may be decided: buttons of the cockpit. */
    actions: needs ? actionsOf(p) : [],
  };
}

function actionsOf(p: Payment): contract.SettleBody["action"][] {
  if (p.state === "refunding") return ["refund", "not_charged"];
  return p.attention === DENIED ? ["accept", "refund"] : ["accept", "refund", "not_charged"];
}

const rowOf = {
  payment: payments,
  needsPerson: sql<boolean>`coalesce(${needsPerson}, false)`,
  hasOrder: sql<boolean>`exists (select 1 from orders where orders.id = 'ord_' || ${payments.reference})`,
};

const who = { tag: "Operator", who: "admin" } as const;

const LIST_PAYMENTS: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/admin/payments",
  operationId: "listPayments",
  summary: "Payments, newest first; attention=true: those on which a person has to decide",
  description: "Page by page with `cursor`. `actions` are the ways out that `settlePayment` takes.",
  query: contract.paymentsQuery,
  answers: { 200: { description: "payments", content: { schema: contract.paymentsView, example: examples.payments } } },
  problems: ["INVALID_REQUEST"],
};

const SETTLE: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/payments/{reference}/settle",
  operationId: "settlePayment",
  summary: "Decide about a payment on which the gateway and the books do not agree; repeating it changes nothing",
  description:
    "`accept`: the money counts as this payment's. `refund`: what the gateway captured goes back. `not_charged`: nothing was taken, and the units are free again.",
  body: contract.settleBody,
  bodyExample: examples.settle,
  answers: {
    200: {
      description: "the payment as it is now",
      content: { schema: contract.paymentView, example: examples.settledPayment },
    },
  },
  problems: ["NOT_SETTLEABLE"],
};

export function adminPaymentRoutes(door: OperatorDoor): void {
  const { route } = door.routes;
  route(LIST_PAYMENTS, (c) => listPayments(door, c));
  route(SETTLE, (c) => settle(door, c));
}

async function listPayments(door: OperatorDoor, c: Http): Promise<Response> {
  door.check(c);
  const q = check(contract.paymentsQuery, c.req.query());
  const wanted = q.attention === "true" ? needsPerson : sql`${needsPerson} is not true`;
  const rows = await door.ctx.db
    .select(rowOf)
    .from(payments)
    .where(
      and(
        q.saleId === undefined ? undefined : eq(payments.saleId, q.saleId),
        q.attention === undefined ? undefined : wanted,
        // References begin with their time.
        q.cursor === undefined ? undefined : lt(payments.reference, q.cursor),
      ),
    )
    .orderBy(desc(payments.reference))
    .limit(q.limit + 1);
  const page = rows.slice(0, q.limit);
  const nextCursor = rows.length > q.limit ? (page.at(-1)?.payment.reference ?? null) : null;
  return door.routes.json(c, 200, { payments: page.map(view), nextCursor });
}

async function settle(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx } = door;
  door.check(c);
  const body = check(contract.settleBody, await door.routes.bodyOf(c));
  const reference = c.req.param("reference") ?? "";
  const payment = /^[0-9A-Z]{26}$/.test(reference) ? await findPayment(ctx.db, reference) : undefined;
  if (!payment) throw new Problem("NOT_FOUND", "no such payment");
  const done = await settleByHand(ctx, reference, body);
  if (done.outcome === "REFUSED") throw new Problem("NOT_SETTLEABLE", done.why);
  if (done.outcome === "SETTLED") {
    const { state, attention, capturedAmount, capturedCurrency } = done.before;
    const captured = capturedAmount === null ? undefined : `${capturedAmount} ${capturedCurrency}`;
    const detail = { reference, action: body.action, reason: body.reason, from: state, why: attention, captured };
    await door.note("settle payment", payment.saleId, detail);
    await settleHolds(ctx, [done.payment]).catch((error) =>
      ctx.log.warn({ err: error, reference }, "the hold follows with the next reconcile"),
    );
    ctx.work.emit("refund");
  }
  const [row] = await ctx.db.select(rowOf).from(payments).where(eq(payments.reference, reference));
  return door.routes.json(c, 200, view(row as Row));
}
