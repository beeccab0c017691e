/** The HTTP API: shopper routes in the order of the flow, then operations. Operator routes are in admin.ts. */

import type { IncomingHttpHeaders } from "node:http";
import type { Context as Http } from "hono";
import type { Context } from "./context.ts";
import { around } from "./crash-points.ts";
import type { Hold, SaleClock } from "./domain/hold.ts";
import { orderIdOf, type ReservationId, referenceOfOrder, referenceOfPayment } from "./domain/ids.ts";
import { preferredLanguage } from "./domain/language.ts";
import { cartOf, type Sale } from "./domain/sale.ts";
import { adminRoutes } from "./http/admin.ts";
import {
  findSale,
  type HotRequest,
  headerOf,
  incomingOf,
  makeRoutes,
  parseJson,
  type Reply,
  waitMsOf,
} from "./http/api.ts";
import { adminAuth, customerRate, shopperAuth } from "./http/auth.ts";
import * as contract from "./http/contract.ts";
import { check, checkIdempotencyKey, checkReserveBody } from "./http/contract.ts";
import { makeInstantRefusals, notOpen, refusalOf } from "./http/instant-refusals.ts";
import { documentRoutes, operationRoutes } from "./http/operations.ts";
import { invalid, Problem } from "./http/problem.ts";
import { makeReturned } from "./http/returned.ts";
import {
  bareReservation,
  findOrder,
  type ReservationView,
  saleViewer,
  viewBegun,
  viewOrders,
  viewReservation,
} from "./http/views.ts";
import { findPayment } from "./payments/rows.ts";
import { type PayRequest, payStage } from "./stages/pay.ts";
import { reserveStage } from "./stages/reserve.ts";
import { pageRoutes } from "./web/pages.tsx";

/** A waiting answer looks again by itself this often; hints make it faster. */
const LOOK_MS = 1_000;
const EVENTS_KEEPALIVE_MS = 15_000;

export function makeApp(ctx: Context) {
  const routes = makeRoutes(ctx);
  const { app, route, hotRoute, json } = routes;
  const authenticate = shopperAuth(ctx.config.shopperTokenSecrets ?? []);
  const auth = adminAuth(ctx.config.adminTokens);
  const withinRate = customerRate(ctx.config.customerRatePerS);
  const reserve = reserveStage(ctx);
  const pay = payStage(ctx);
  const saleView = saleViewer(ctx);
  const instantRefusals = makeInstantRefusals(ctx);

  function customerOf(headers: IncomingHttpHeaders): string {
    const customerId = authenticate(headers.authorization);
    withinRate(customerId);
    return customerId;
  }
  const customer = (c: Http) => customerOf(incomingOf(c).headers);

  const saleOf = (c: Http) => findSale(ctx, c.req.param("saleId"));

  /** A genuine id of this customer, else NOT_FOUND before any store is asked. */
  async function reservationOf(text: string, customerId: string): Promise<{ sale: Sale; id: ReservationId }> {
    const id = ctx.ids.parse(text, customerId);
    const sale = id && (await ctx.sales.getByNo(id.saleNo));
    if (!id || !sale) throw new Problem("NOT_FOUND", "no such reservation");
    return { sale, id };
  }

  const lost = () => new Problem("HOLD_LOST");
  const mayHaveReturned = makeReturned(ctx);
  /** Whoever asks about a payment that is open may have come back from the gateway's page. */
  function asked(view: ReservationView): ReservationView {
    const { payment } = view;
    if (payment && (payment.status === "action_required" || payment.status === "unknown"))
      mayHaveReturned(referenceOfPayment(payment.id));
    return view;
  }

  async function readHold(sale: Sale, key: string): Promise<{ hold: Hold; clock: SaleClock }> {
    const clock = await ctx.sales.call(sale, (s) => ctx.scripts.read(s, [key]));
    const hold = clock.results[0];
    if (!hold) throw lost();
    return { hold, clock };
  }

  async function readView(sale: Sale, key: string): Promise<ReservationView> {
    const { hold, clock } = await readHold(sale, key);
    return viewReservation(ctx, sale, key, hold, clock);
  }

  // ---- the sale ----------------------------------------------------------------------------------------------------

  hotRoute(
    {
      method: "get",
      path: "/v1/sales/{saleId}",
      priority: "read",
      summary: "A sale with live availability, at most 250 ms old",
      tag: "Storefront",
      who: "anyone",
      answers: {
        200: { description: "the sale", schema: contract.saleView },
        304: { description: "unchanged since the given ETag" },
      },
    },
    ({ headers, params: [saleId = ""] }) => {
      const sale = ctx.sales.known(saleId);
      const seen = sale && saleView.last(sale);
      return seen
        ? saleAnswer(headers, seen)
        : findSale(ctx, saleId).then(async (found) => saleAnswer(headers, await saleView.fresh(found)));
    },
  );
  function saleAnswer(asked: IncomingHttpHeaders, { text, etag }: { text: string; etag: string }): Reply {
    const headers = { "cache-control": "public, max-age=1", etag };
    return asked["if-none-match"] === etag
      ? routes.reply(asked, 304, null, headers)
      : routes.reply(asked, 200, text, headers);
  }

  // ---- reserve -----------------------------------------------------------------------------------------------------

  const reserveHeaders = {
    "Idempotency-Key": "1-64 visible ASCII characters; the same key from the same customer is the same reservation",
  };
  hotRoute(
    {
      method: "post",
      path: "/v1/sales/{saleId}/reservations",
      priority: "reserve",
      summary: "Reserve: all lines or none, for a limited time",
      tag: "Storefront",
      who: "shopper",
      headers: reserveHeaders,
      body: contract.reserveBody,
      answers: {
        201: { description: "held", schema: contract.reservationView },
        200: {
          description: "the same key before: the reservation in its present state; header `Idempotent-Replay: true`",
          schema: contract.reservationView,
        },
      },
      problems: [
        "SOLD_OUT",
        "ALL_HELD",
        "NOT_ENOUGH_FREE",
        "LIMIT_REACHED",
        "SALE_NOT_OPEN",
        "SALE_PAUSED",
        "SALE_CLOSED",
        "IDEMPOTENCY_MISMATCH",
      ],
    },
    (request) => {
      const customerId = customerOf(request.headers);
      const idempotencyKey = checkIdempotencyKey(headerOf(request.headers, "idempotency-key"));
      const saleId = request.params[0] ?? "";
      const sale = ctx.sales.known(saleId);
      if (sale) {
        const earlyMs = instantRefusals.tooEarly(sale);
        if (earlyMs !== null) throw notOpen(sale, earlyMs);
        const refused = instantRefusals.refusal(sale, customerId, null);
        if (refused) throw refusalOf(sale, "", refused.result, refused.clock);
      }
      return routes.bodyText(request).then(async (text) => {
        const lines = checkReserveBody(parseJson(text));
        return reserved(request.headers, sale ?? (await findSale(ctx, saleId)), { customerId, idempotencyKey, lines });
      });
    },
  );
  async function reserved(
    asked: IncomingHttpHeaders,
    sale: Sale,
    r: { customerId: string; idempotencyKey: string; lines: string },
  ): Promise<Reply> {
    const { customerId, lines } = r;
    cartOf(sale, lines);
    const refused = instantRefusals.refusal(sale, customerId, lines);
    if (refused) throw refusalOf(sale, lines, refused.result, refused.clock);
    const key = ctx.ids.reservationKey(sale.no, customerId, r.idempotencyKey);
    const { result, clock } = await reserve(sale, { key, customerId, lines });
    if (result.outcome === "HELD") {
      const hold: Hold = { state: "held", deadlineMs: result.deadlineMs, reference: "", lines, customerId };
      const view = bareReservation(ctx, sale, key, hold, clock);
      return routes.reply(asked, 201, view, { location: `/v1/reservations/${view.id}` });
    }
    if (result.outcome === "REPLAYED") {
      const view = await viewReservation(ctx, sale, key, result.hold, clock);
      return routes.reply(asked, 200, view, { location: `/v1/reservations/${view.id}`, "idempotent-replay": "true" });
    }
    instantRefusals.refused(sale);
    throw refusalOf(sale, lines, result, clock);
  }

  route(
    {
      method: "get",
      path: "/v1/sales/{saleId}/reservations",
      priority: "read",
      summary: "The caller's own reservations, newest first",
      tag: "Storefront",
      who: "shopper",
      answers: { 200: { description: "reservations", schema: contract.reservationsView } },
    },
    async (c) => {
      const customerId = customer(c);
      const sale = await saleOf(c);
      const clock = await ctx.sales.call(sale, (s) => ctx.scripts.list(s, customerId));
      return json(c, 200, {
        reservations: await Promise.all(
          clock.results
            .reverse()
            .map(async ({ key, hold }) => asked(await viewReservation(ctx, sale, key, hold, clock))),
        ),
      });
    },
  );

  route(
    {
      method: "get",
      path: "/v1/reservations/{id}",
      priority: "read",
      summary: "A reservation, with its payment and place in the line while paying",
      tag: "Storefront",
      who: "shopper",
      answers: { 200: { description: "the reservation", schema: contract.reservationView } },
      problems: ["HOLD_LOST"],
    },
    async (c) => {
      const { sale, id } = await reservationOf(c.req.param("id") ?? "", customer(c));
      return json(c, 200, asked(await readView(sale, id.key)));
    },
  );

  route(
    {
      method: "get",
      path: "/v1/reservations/{id}/events",
      summary: "The reservation as server-sent events, until a final state",
      tag: "Storefront",
      who: "shopper",
      answers: {
        200: {
          description: "`event: reservation`, `data:` the reservation",
          schema: contract.reservationView,
          type: "text/event-stream",
        },
      },
      problems: ["HOLD_LOST"],
    },
    async (c) => {
      const { sale, id } = await reservationOf(c.req.param("id") ?? "", customer(c));
      let view: ReservationView | null = asked(await readView(sale, id.key));
      return routes.events(c, async (stream, gone) => {
        let told = "";
        let toldAt = Date.now();
        while (!gone.aborted && !ctx.draining.aborted) {
          const data = view && JSON.stringify({ ...view, serverTime: undefined });
          if (view && data !== told) {
            await stream.writeSSE({ event: "reservation", data: JSON.stringify(view) });
            [told, toldAt] = [data as string, Date.now()];
            const final =
              (view.status === "confirmed" && view.recorded) || view.status === "released" || view.status === "expired";
            if (final) return;
          } else if (Date.now() - toldAt > EVENTS_KEEPALIVE_MS) {
            await stream.write(": still here\n\n");
            toldAt = Date.now();
          }
          await ctx.changeHints.next(id.key, LOOK_MS, gone);
          try {
            view = await readView(sale, id.key);
          } catch (error) {
            // Lost for good: whoever connects again is told so. A store that is away changes nothing that was told; the next look tells.
            if (error instanceof Problem && error.code === "HOLD_LOST") return;
            view = null;
          }
        }
      });
    },
  );

  route(
    {
      method: "delete",
      path: "/v1/reservations/{id}",
      priority: "finish",
      summary: "Release: give a hold back",
      tag: "Storefront",
      who: "shopper",
      answers: { 200: { description: "released, also when repeated", schema: contract.reservationView } },
      problems: ["RESERVATION_EXPIRED", "PAYMENT_IN_PROGRESS", "ALREADY_CONFIRMED", "HOLD_LOST"],
    },
    async (c) => {
      const customerId = customer(c);
      const { sale, id } = await reservationOf(c.req.param("id") ?? "", customerId);
      const clock = await around("release.redis", () =>
        ctx.sales.call(sale, (s) => ctx.scripts.release(s, [{ key: id.key, customerId }])),
      );
      const r = clock.results[0];
      switch (r?.outcome) {
        case "RELEASED":
          return json(c, 200, bareReservation(ctx, sale, id.key, r.hold, clock));
        case "EXPIRED":
          throw new Problem("RESERVATION_EXPIRED");
        case "PAYING":
          throw new Problem("PAYMENT_IN_PROGRESS");
        case "CONFIRMED":
          throw new Problem("ALREADY_CONFIRMED", undefined, { orderId: orderIdOf(r.hold.reference) });
        default:
          throw lost();
      }
    },
  );

  // ---- pay and confirm ---------------------------------------------------------------------------------------------

  hotRoute(
    {
      method: "post",
      path: "/v1/reservations/{id}/confirm",
      priority: "finish",
      summary: "Pay for a reservation; repeating it makes one payment",
      tag: "Storefront",
      who: "shopper",
      headers: { Prefer: "`wait=10` holds the answer up to that many seconds, 30 at most" },
      body: contract.confirmBody,
      answers: {
        202: { description: "paying", schema: contract.reservationView },
        200: { description: "confirmed", schema: contract.reservationView },
      },
      problems: [
        "PAYMENT_DECLINED",
        "RESERVATION_EXPIRED",
        "RESERVATION_RELEASED",
        "HOLD_LOST",
        "SALE_PAUSED",
        "PAYMENT_LINE_FULL",
      ],
    },
    async (request) => {
      const { headers, params } = request;
      const customerId = customerOf(headers);
      const b = check(contract.confirmBody, parseJson(await routes.bodyText(request)));
      const { sale, id } = await reservationOf(params[0] ?? "", customerId);
      const asked: PayRequest = {
        key: id.key,
        reservationId: params[0] as string,
        customerId,
        ...gatewayOf(ctx, sale, b.payment),
        contact: b.contact,
        shipTo: b.shipTo ?? null,
        returnUrl: b.returnUrl ?? null,
        language: sale.language ?? preferredLanguage(headerOf(headers, "accept-language")),
      };
      const paid = await pay(sale, asked);
      ctx.metrics.outcomes.inc({ stage: "pay", outcome: paid.outcome });
      const waitMs = waitMsOf(headers);
      switch (paid.outcome) {
        case "LINE_FULL":
          throw new Problem("PAYMENT_LINE_FULL", undefined, {}, 5000);
        case "PAUSED":
          throw new Problem("SALE_PAUSED", "payments are paused; your hold's clock stands still", {}, 10_000);
        case "LOST":
          throw lost();
        case "EXPIRED":
          throw new Problem("RESERVATION_EXPIRED");
        case "RELEASED":
          throw new Problem("RESERVATION_RELEASED");
        case "DECLINED":
          throw await declined(sale, id.key, paid.hold, paid.clock);
        case "PAYING":
          if (paid.begun && waitMs === 0)
            return routes.reply(headers, 202, await viewBegun(ctx, sale, id.key, paid.hold, paid.clock, paid.begun));
          if (!paid.begun) mayHaveReturned(paid.hold.reference);
          return settled(request, sale, id.key, paid.hold, paid.clock, waitMs);
        case "CONFIRMED":
          return settled(request, sale, id.key, paid.hold, paid.clock, waitMs);
      }
    },
  );

  async function declined(sale: Sale, key: string, hold: Hold, clock: SaleClock): Promise<Problem> {
    const reservation = await viewReservation(ctx, sale, key, hold, clock);
    const declineCode = reservation.payment?.declineCode ?? "declined";
    return new Problem("PAYMENT_DECLINED", `the payment was declined (${declineCode})`, { declineCode, reservation });
  }

  /** Waits as long as the caller prefers for the payment to end; unknown stays paying. */
  async function settled(
    request: HotRequest,
    sale: Sale,
    key: string,
    first: Hold,
    firstClock: SaleClock,
    waitMs: number,
  ): Promise<Reply> {
    const until = Date.now() + waitMs;
    const gone = waitMs > 0 ? request.gone() : ctx.draining;
    let [hold, clock] = [first, firstClock];
    const answer = async (status: number) =>
      routes.reply(request.headers, status, await viewReservation(ctx, sale, key, hold, clock));
    for (;;) {
      if (hold.state === "confirmed") return answer(200);
      if (hold.state === "held" && hold.reference !== "") {
        const p = await ctx.reads.payment(hold.reference);
        if (p?.state === "declined") throw await declined(sale, key, hold, clock);
        return answer(202); // waited too long in line: held again, to be tried again
      }
      if (hold.state === "released" || hold.state === "expired") throw lost();
      const leftMs = until - Date.now();
      if (leftMs <= 0 || gone.aborted || ctx.draining.aborted) return answer(202);
      if ((await ctx.reads.payment(hold.reference))?.state === "action_required") return answer(202);
      await ctx.changeHints.next(key, Math.min(leftMs, LOOK_MS), gone);
      ({ hold, clock } = await readHold(sale, key));
    }
  }

  route(
    {
      method: "get",
      path: "/v1/orders/{orderId}",
      priority: "read",
      summary: "The caller's recorded order",
      tag: "Storefront",
      who: "shopper",
      answers: { 200: { description: "the order", schema: contract.orderView } },
    },
    async (c) => {
      const customerId = customer(c);
      const reference = referenceOfOrder(c.req.param("orderId") ?? "");
      if (!reference) throw new Problem("NOT_FOUND", "no such order");
      const order = await findOrder(ctx, orderIdOf(reference));
      if (order && order.customerId === customerId) return json(c, 200, (await viewOrders(ctx, [order]))[0]);
      const payment = order ? undefined : await findPayment(ctx.db, reference);
      const coming = payment?.state === "captured" && payment.customerId === customerId;
      throw new Problem(
        "NOT_FOUND",
        coming ? "the order is being written" : "no such order",
        {},
        coming ? 500 : undefined,
      );
    },
  );

  operationRoutes(ctx, routes);
  adminRoutes(ctx, routes, { auth, instantRefusals, saleOf });
  pageRoutes(ctx, routes, auth);
  documentRoutes(ctx, routes);
  return { app, specs: routes.specs, fastPath: routes.fastPath };
}

/** The gateway and token of a confirm, checked against what the sale offers. */
function gatewayOf(
  ctx: Context,
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
