/** Reservations: made (the hot route of a sale's first second), listed, read, followed, given back. */
import type { IncomingHttpHeaders } from "node:http";
import type { Context as Http } from "hono";
import type { SSEStreamingApi } from "hono/streaming";
import type { Hold } from "../domain/hold.ts";
import { orderIdOf, referenceOfPayment } from "../domain/ids.ts";
import { cartOf, type Sale } from "../domain/sale.ts";
import { release } from "../stages/release.ts";
import { type ReserveRequest, type ReserveStage, reserveStage } from "../stages/reserve.ts";
import * as contract from "./contract.ts";
import { checkIdempotencyKey, checkReserveBody } from "./contract.ts";
import type { ShopperDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import type { HotRequest, Reply } from "./fast-path.ts";
import { type InstantRefusals, notOpen, refusalOf } from "./instant-refusals.ts";
import { findReservation, findSale, holdLost, readHold } from "./lookups.ts";
import { Problem } from "./problem.ts";
import { bodyText, headerOf, incomingOf, parseJson } from "./requests.ts";
import type { RouteSpec } from "./route-spec.ts";
import { bareReservation, isFinal, type ReservationView, viewReservation } from "./views.ts";

/** A waiting answer reads again by itself this often; hints make it faster. */
export const POLL_MS = 1_000;
const EVENTS_KEEPALIVE_MS = 15_000;

const who = { tag: "Storefront", who: "shopper" } as const;

const RESERVE: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/sales/{saleId}/reservations",
  operationId: "reserve",
  priority: "reserve",
  summary: "Reserve: all lines or none, for a limited time",
  description:
    "The same `Idempotency-Key` from the same customer is the same reservation, in its present state, however often it is sent: repeat after a lost answer.",
  headers: { "Idempotency-Key": contract.IDEMPOTENCY_KEY_HEADER },
  body: contract.reserveBody,
  bodyExample: examples.reserve,
  answers: {
    201: { description: "held", content: { schema: contract.reservationView, example: examples.held } },
    200: {
      description: "the same key before: the reservation in its present state; header `Idempotent-Replay: true`",
      content: { schema: contract.reservationView, example: examples.confirmed },
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
};

const LIST_RESERVATIONS: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/sales/{saleId}/reservations",
  operationId: "listReservations",
  priority: "read",
  summary: "The caller's own reservations, newest first",
  description: "The way back after a closed tab: whatever the caller holds, held or has paid for in this sale.",
  answers: {
    200: {
      description: "reservations",
      content: { schema: contract.reservationsView, example: examples.reservations },
    },
  },
};

const READ_RESERVATION: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/reservations/{id}",
  operationId: "readReservation",
  priority: "read",
  summary: "A reservation, with its payment and place in the line while paying",
  description:
    "`payment` is there while paying, and after a decline; `recorded` once the order is written. While paying there is no `expiresAt`.",
  answers: {
    200: { description: "the reservation", content: { schema: contract.reservationView, example: examples.paying } },
  },
  problems: ["HOLD_LOST"],
};

const FOLLOW_RESERVATION: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/reservations/{id}/events",
  operationId: "followReservation",
  summary: "The reservation as server-sent events, until a final state",
  description:
    "First as it is, then at each change, with a comment every 15 s; ends after a final state. The token goes into the header, so browsers read it with fetch.",
  answers: {
    200: {
      description: "`event: reservation`, `data:` the reservation",
      content: { schema: contract.reservationView, example: examples.paying },
      type: "text/event-stream",
    },
  },
  problems: ["HOLD_LOST"],
};

const RELEASE: RouteSpec = {
  ...who,
  method: "delete",
  path: "/v1/reservations/{id}",
  operationId: "releaseReservation",
  priority: "finish",
  summary: "Release: give a hold back",
  description: "The units are free at once. What is being paid for, or was, is not given back.",
  answers: {
    200: {
      description: "released, also when repeated",
      content: { schema: contract.reservationView, example: examples.released },
    },
  },
  problems: ["RESERVATION_EXPIRED", "PAYMENT_IN_PROGRESS", "ALREADY_CONFIRMED", "HOLD_LOST"],
};

interface Reserving {
  door: ShopperDoor;
  reserve: ReserveStage;
  instantRefusals: InstantRefusals;
}

export function reservationRoutes(door: ShopperDoor, instantRefusals: InstantRefusals): void {
  const { route, hotRoute } = door.routes;
  const reserving: Reserving = { door, reserve: reserveStage(door.ctx), instantRefusals };
  hotRoute(RESERVE, (request) => askToReserve(reserving, request));
  route(LIST_RESERVATIONS, (c) => listReservations(door, c));
  route(READ_RESERVATION, (c) => readReservation(door, c));
  route(FOLLOW_RESERVATION, (c) => followReservation(door, c));
  route(RELEASE, (c) => releaseReservation(door, c));
}

/** Refuses, before the body is read, what can be refused without it. */
function askToReserve(reserving: Reserving, request: HotRequest): Promise<Reply> {
  const { door, instantRefusals } = reserving;
  const customerId = door.customerOf(request.headers);
  const idempotencyKey = checkIdempotencyKey(headerOf(request.headers, "idempotency-key"));
  const saleId = request.params[0] ?? "";
  const sale = door.ctx.sales.known(saleId);
  if (sale) {
    const earlyMs = instantRefusals.tooEarly(sale);
    if (earlyMs !== null) throw notOpen(sale, earlyMs);
    const refused = instantRefusals.refusal(sale, customerId, null);
    if (refused) throw refusalOf(sale, "", refused.result, refused.clock);
  }
  return reserve(reserving, request, { customerId, idempotencyKey, saleId, sale });
}

interface Asked {
  customerId: string;
  idempotencyKey: string;
  saleId: string;
  /** Where this process knows it already. */
  sale: Sale | undefined;
}

async function reserve(reserving: Reserving, request: HotRequest, asked: Asked): Promise<Reply> {
  const { door, instantRefusals } = reserving;
  const { customerId } = asked;
  const lines = checkReserveBody(parseJson(await bodyText(request)));
  const sale = asked.sale ?? (await findSale(door.ctx, asked.saleId));
  cartOf(sale, lines);
  const refused = instantRefusals.refusal(sale, customerId, lines);
  if (refused) throw refusalOf(sale, lines, refused.result, refused.clock);
  const key = door.ctx.ids.reservationKey(sale.no, customerId, asked.idempotencyKey);
  return reserveInRedis(reserving, request.headers, sale, { key, customerId, lines });
}

async function reserveInRedis(
  { door, reserve, instantRefusals }: Reserving,
  asked: IncomingHttpHeaders,
  sale: Sale,
  request: ReserveRequest,
): Promise<Reply> {
  const { ctx, routes } = door;
  const { key, customerId, lines } = request;
  const { result, clock } = await reserve(sale, request);
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

async function listReservations(door: ShopperDoor, c: Http): Promise<Response> {
  const { ctx, routes, customerOf } = door;
  const customerId = customerOf(incomingOf(c).headers);
  const sale = await findSale(ctx, c.req.param("saleId"));
  const clock = await ctx.sales.call(sale, (s) => ctx.scripts.list(s, customerId));
  const newestFirst = clock.results.reverse();
  return routes.json(c, 200, {
    reservations: await Promise.all(
      newestFirst.map(({ key, hold }) => viewReservation(ctx, sale, key, hold, clock)),
    ).then((views) => views.map((v) => asked(door, v))),
  });
}

const askedFor = ({ ctx, customerOf }: ShopperDoor, c: Http) =>
  findReservation(ctx, c.req.param("id"), customerOf(incomingOf(c).headers));

async function readView({ ctx }: ShopperDoor, sale: Sale, key: string): Promise<ReservationView> {
  const { hold, clock } = await readHold(ctx, sale, key);
  return viewReservation(ctx, sale, key, hold, clock);
}

/** The shopper asks about a payment that is open: they may have come back from the gateway's page. */
function asked(door: ShopperDoor, view: ReservationView): ReservationView {
  const { payment } = view;
  if (payment && (payment.status === "action_required" || payment.status === "unknown"))
    door.mayHaveReturned(referenceOfPayment(payment.id));
  return view;
}

async function readReservation(door: ShopperDoor, c: Http): Promise<Response> {
  const { sale, id } = await askedFor(door, c);
  return door.routes.json(c, 200, asked(door, await readView(door, sale, id.key)));
}

async function followReservation(door: ShopperDoor, c: Http): Promise<Response> {
  const { sale, id } = await askedFor(door, c);
  const first = asked(door, await readView(door, sale, id.key));
  return door.routes.events(c, (stream, gone) => tellChanges(door, sale, id.key, first, stream, gone));
}

async function tellChanges(
  door: ShopperDoor,
  sale: Sale,
  key: string,
  first: ReservationView,
  stream: SSEStreamingApi,
  gone: AbortSignal,
): Promise<void> {
  const { changeHints, draining } = door.ctx;
  let view: ReservationView | null = first;
  let told = "";
  let toldAt = Date.now();
  while (!gone.aborted && !draining.aborted) {
    const data: string | null = view && JSON.stringify({ ...view, serverTime: undefined });
    if (view && data !== null && data !== told) {
      await stream.writeSSE({ event: "reservation", data: JSON.stringify(view) });
      [told, toldAt] = [data, Date.now()];
      if (isFinal(view)) return;
    } else if (Date.now() - toldAt > EVENTS_KEEPALIVE_MS) {
      await stream.write(": still here\n\n");
      toldAt = Date.now();
    }
    await changeHints.next(key, POLL_MS, gone);
    try {
      view = await readView(door, sale, key);
    } catch (error) {
      // Lost for good: a client that connects again is told so. A store that is away changes nothing that was told; the
      // next reading tells.
      if (error instanceof Problem && error.code === "HOLD_LOST") return;
      view = null;
    }
  }
}

async function releaseReservation({ ctx, routes, customerOf }: ShopperDoor, c: Http): Promise<Response> {
  const customerId = customerOf(incomingOf(c).headers);
  const { sale, id } = await findReservation(ctx, c.req.param("id"), customerId);
  const { result, clock } = await release(ctx, sale, { key: id.key, customerId });
  switch (result.outcome) {
    case "RELEASED":
      return routes.json(c, 200, bareReservation(ctx, sale, id.key, result.hold, clock));
    case "EXPIRED":
      throw new Problem("RESERVATION_EXPIRED");
    case "PAYING":
      throw new Problem("PAYMENT_IN_PROGRESS");
    case "CONFIRMED":
      throw new Problem("ALREADY_CONFIRMED", undefined, { orderId: orderIdOf(result.hold.reference) });
    case "LOST":
      throw holdLost();
  }
}
