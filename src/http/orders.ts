/** Orders as the shopper who made them sees them. */
import type { Context as Http } from "hono";
import { orderIdOf, referenceOfOrder } from "../domain/ids.ts";
import { findPayment } from "../payments/rows.ts";
import * as contract from "./contract.ts";
import type { ShopperDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import { Problem } from "./problem.ts";
import { incomingOf } from "./requests.ts";
import type { RouteSpec } from "./route-spec.ts";
import { findOrder, viewOrders } from "./views.ts";

const READ_ORDER: RouteSpec = {
  method: "get",
  path: "/v1/orders/{orderId}",
  operationId: "readOrder",
  priority: "read",
  summary: "The caller's recorded order",
  description: "404 with `Retry-After` while the order of a confirmed reservation is being written.",
  tag: "Storefront",
  who: "shopper",
  answers: { 200: { description: "the order", content: { schema: contract.orderView, example: examples.order } } },
};
/** An order that is being written is there in about this time. */
const WRITTEN_SOON_MS = 500;

export function orderRoutes(door: ShopperDoor): void {
  door.routes.route(READ_ORDER, (c) => readOrder(door, c));
}

async function readOrder({ ctx, routes, customerOf }: ShopperDoor, c: Http): Promise<Response> {
  const customerId = customerOf(incomingOf(c).headers);
  const reference = referenceOfOrder(c.req.param("orderId") ?? "");
  if (!reference) throw new Problem("NOT_FOUND", "no such order");
  const order = await findOrder(ctx, orderIdOf(reference));
  if (order && order.customerId === customerId) return routes.json(c, 200, (await viewOrders(ctx, [order]))[0]);
  const payment = order ? undefined : await findPayment(ctx.db, reference);
  if (payment?.state === "captured" && payment.customerId === customerId)
    throw new Problem("NOT_FOUND", "the order is being written", {}, WRITTEN_SOON_MS);
  throw new Problem("NOT_FOUND", "no such order");
}
