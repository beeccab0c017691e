/**
 * Paying for a reservation: one payment however often it is asked for, and an answer that waits as long as the caller
 * prefers.
 */
import type { IncomingHttpHeaders } from "node:http";
import type { Hold, SaleClock } from "../domain/hold.ts";
import { preferredLanguage } from "../domain/language.ts";
import type { Sale } from "../domain/sale.ts";
import { type Paid, type PayRequest, type PayStage, payStage } from "../stages/pay.ts";
import * as contract from "./contract.ts";
import { check } from "./contract.ts";
import type { ShopperDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import type { HotRequest, Reply } from "./fast-path.ts";
import { findReservation, holdLost, readHold } from "./lookups.ts";
import { invalid, Problem } from "./problem.ts";
import { bodyText, headerOf, parseJson, waitMsOf } from "./requests.ts";
import { POLL_MS } from "./reservations.ts";
import type { RouteSpec } from "./route-spec.ts";
import { viewBegun, viewReservation } from "./views.ts";

const PAY: RouteSpec = {
  method: "post",
  path: "/v1/reservations/{id}/pay",
  operationId: "payReservation",
  priority: "finish",
  summary: "Pay for a reservation; repeating it makes one payment",
  description:
    "Answers 202 once the payment is written down; `Prefer: wait` waits for its end. Repeated while paying or after it, it joins what is there; after a decline another token is another try.",
  tag: "Storefront",
  who: "shopper",
  headers: {
    Prefer: {
      description: "`wait=10` holds the answer up to that many seconds, 30 at most",
      required: false,
      example: "wait=10",
    },
  },
  body: contract.confirmBody,
  bodyExample: examples.pay,
  answers: {
    202: { description: "paying", content: { schema: contract.reservationView, example: examples.paying } },
    200: { description: "confirmed", content: { schema: contract.reservationView, example: examples.confirmed } },
  },
  problems: [
    "PAYMENT_DECLINED",
    "RESERVATION_EXPIRED",
    "RESERVATION_RELEASED",
    "HOLD_LOST",
    "SALE_PAUSED",
    "PAYMENT_LINE_FULL",
  ],
};

/** The name that the route had first. Callers were written against it: it stays. */
const CONFIRM: RouteSpec = {
  ...PAY,
  path: "/v1/reservations/{id}/confirm",
  operationId: "confirmReservation",
  summary: "The same as /pay, under its first name",
  description: "Callers of before go on using it; it stays.",
};

export function payRoutes(door: ShopperDoor): void {
  const payOnce = payStage(door.ctx);
  const handler = (request: HotRequest) => pay(door, payOnce, request);
  door.routes.hotRoute(PAY, handler);
  door.routes.hotRoute(CONFIRM, handler);
}

async function pay(door: ShopperDoor, payOnce: PayStage, request: HotRequest): Promise<Reply> {
  const { ctx } = door;
  const { headers, params } = request;
  const customerId = door.customerOf(headers);
  const body = check(contract.confirmBody, parseJson(await bodyText(request)));
  const { sale, id } = await findReservation(ctx, params[0], customerId);
  const asked: PayRequest = {
    key: id.key,
    reservationId: params[0] as string,
    customerId,
    ...gatewayOf(door, sale, body.payment),
    contact: body.contact,
    shipTo: body.shipTo ?? null,
    returnUrl: body.returnUrl ?? null,
    language: sale.language ?? preferredLanguage(headerOf(headers, "accept-language")),
  };
  const paid = await payOnce(sale, asked);
  ctx.metrics.outcomes.inc({ stage: "pay", outcome: paid.outcome });
  return answerPaid(door, request, { sale, key: id.key }, paid);
}

/** The gateway and token of a payment, checked against what the sale offers. */
function gatewayOf(
  { ctx }: ShopperDoor,
  sale: Sale,
  payment: { gateway?: string | undefined; token?: string | undefined },
): { gateway: string; token: string | null } {
  const name = payment.gateway ?? (sale.gateways[0] as string);
  const gateway = sale.gateways.includes(name) ? ctx.gateways.get(name) : undefined;
  if (!gateway) throw invalid([{ path: "payment.gateway", message: `this sale offers ${sale.gateways.join(", ")}` }]);
  if (gateway.needsToken && !payment.token)
    throw invalid([{ path: "payment.token", message: `${name} needs the token its browser library gave` }]);
  if (!gateway.needsToken && payment.token)
    throw invalid([{ path: "payment.token", message: `${name} takes no token` }]);
  return { gateway: name, token: payment.token ?? null };
}

interface Reserved {
  sale: Sale;
  key: string;
}

async function answerPaid(door: ShopperDoor, request: HotRequest, of: Reserved, paid: Paid): Promise<Reply> {
  const { ctx, routes } = door;
  switch (paid.outcome) {
    case "LINE_FULL":
      throw new Problem("PAYMENT_LINE_FULL", undefined, {}, 5000);
    case "PAUSED":
      throw new Problem("SALE_PAUSED", "payments are paused; your hold's clock stands still", {}, 10_000);
    case "LOST":
      throw holdLost();
    case "EXPIRED":
      throw new Problem("RESERVATION_EXPIRED");
    case "RELEASED":
      throw new Problem("RESERVATION_RELEASED");
    case "DECLINED":
      throw await declined(door, of, paid.hold, paid.clock);
    case "PAYING":
    case "CONFIRMED": {
      const waitMs = waitMsOf(request.headers);
      if (paid.outcome === "PAYING" && paid.begun && waitMs === 0) {
        const view = await viewBegun(ctx, of.sale, of.key, paid.hold, paid.clock, paid.begun);
        return routes.reply(request.headers, 202, view);
      }
      if (paid.outcome === "PAYING" && !paid.begun) door.mayHaveReturned(paid.hold.reference);
      return settled(door, request, of, paid, waitMs);
    }
  }
}

async function declined({ ctx }: ShopperDoor, of: Reserved, hold: Hold, clock: SaleClock): Promise<Problem> {
  const reservation = await viewReservation(ctx, of.sale, of.key, hold, clock);
  const declineCode = reservation.payment?.declineCode ?? "declined";
  return new Problem("PAYMENT_DECLINED", `the payment was declined (${declineCode})`, { declineCode, reservation });
}

async function answerHold(
  { ctx, routes }: ShopperDoor,
  asked: IncomingHttpHeaders,
  status: number,
  of: Reserved,
  seen: { hold: Hold; clock: SaleClock },
): Promise<Reply> {
  return routes.reply(asked, status, await viewReservation(ctx, of.sale, of.key, seen.hold, seen.clock));
}

/** Waits as long as the caller prefers for the payment to end; unknown stays paying. */
async function settled(
  door: ShopperDoor,
  request: HotRequest,
  of: Reserved,
  first: { hold: Hold; clock: SaleClock },
  waitMs: number,
): Promise<Reply> {
  const { ctx } = door;
  const until = Date.now() + waitMs;
  const gone = waitMs > 0 ? request.gone() : ctx.draining;
  for (let seen = first; ; ) {
    const { hold, clock } = seen;
    if (hold.state === "confirmed") return answerHold(door, request.headers, 200, of, seen);
    if (hold.state === "held" && hold.reference !== "") {
      const p = await ctx.reads.payment(hold.reference);
      if (p?.state === "declined") throw await declined(door, of, hold, clock);
      return answerHold(door, request.headers, 202, of, seen); // waited too long in line: held again, to be tried again
    }
    if (hold.state === "released" || hold.state === "expired") throw holdLost();
    const leftMs = until - Date.now();
    const noLonger = leftMs <= 0 || gone.aborted || ctx.draining.aborted;
    if (noLonger || (await ctx.reads.payment(hold.reference))?.state === "action_required")
      return answerHold(door, request.headers, 202, of, seen);
    await ctx.changeHints.next(of.key, Math.min(leftMs, POLL_MS), gone);
    seen = await readHold(ctx, of.sale, of.key);
  }
}
