/** Orders as operators see them: listed, refunded, their mail sent again. */
import { and, eq, lt, sql } from "drizzle-orm";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { referenceOfOrder } from "../domain/ids.ts";
import { beginRefund } from "../stages/refund.ts";
import { orders } from "../stores/schema.ts";
import { mailQueuedView } from "./admin-contract.ts";
import * as contract from "./contract.ts";
import { check } from "./contract.ts";
import type { OperatorDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import { ordersCsv } from "./orders-csv.ts";
import { invalid, Problem } from "./problem.ts";
import { prefers } from "./requests.ts";
import type { RouteSpec } from "./route-spec.ts";
import { findOrder, newestFirst, viewOrders } from "./views.ts";

const who = { tag: "Operator", who: "admin" } as const;

const LIST_ORDERS: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/admin/orders",
  operationId: "listOrders",
  summary: "Orders, newest first; as text/csv one row a line",
  description:
    "Page by page with `cursor`; `format=csv` or `Accept: text/csv` answers all of them. An order is there once it is recorded, each exactly once.",
  query: contract.ordersQuery,
  answers: {
    200: {
      description: "orders",
      content: { schema: contract.ordersView, example: examples.orders },
      texts: { "text/csv": examples.ordersCsv },
    },
  },
  problems: ["INVALID_REQUEST"],
};

const REFUND: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/orders/{id}/refund",
  operationId: "refundOrder",
  summary: "Refund an order, and put its units back on sale or not",
  description: "Idempotent. Units are put back on sale, if at all, when the gateway has said that the money is back.",
  body: contract.refundBody,
  bodyExample: examples.refund,
  answers: {
    202: {
      description: "refunding, or refunded already",
      content: { schema: contract.orderView, example: examples.refunding },
    },
  },
};

const RESEND_MAIL: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/orders/{id}/mail",
  operationId: "resendMail",
  summary: "Send the order's confirmation mail once more, under a new message id",
  description: "Two presses at the same moment send one.",
  body: contract.resendBody,
  bodyExample: examples.resendMail,
  answers: { 202: { description: "queued", content: { schema: mailQueuedView, example: examples.mailQueued } } },
};

export function adminOrderRoutes(door: OperatorDoor): void {
  const { route } = door.routes;
  route(LIST_ORDERS, (c) => listOrders(door, c));
  route(REFUND, (c) => refund(door, c));
  route(RESEND_MAIL, (c) => resendMail(door, c));
}

async function listOrders(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const q = check(contract.ordersQuery, c.req.query());
  const before = cursorOf(q.cursor);
  const where = and(
    q.saleId === undefined ? undefined : eq(orders.saleId, q.saleId),
    before === null ? undefined : lt(orders.no, before),
  );
  if (q.format === "csv" || (q.format === undefined && prefers(c, "text/csv"))) return ordersCsv(ctx, routes, c, where);
  const rows = await ctx.db
    .select()
    .from(orders)
    .where(where)
    .orderBy(newestFirst)
    .limit(q.limit + 1);
  const page = rows.slice(0, q.limit);
  const nextCursor = rows.length > q.limit ? Buffer.from(String(page.at(-1)?.no)).toString("base64url") : null;
  return routes.json(c, 200, { orders: await viewOrders(ctx, page), nextCursor });
}

function cursorOf(text: string | undefined): number | null {
  if (text === undefined) return null;
  const no = Buffer.from(text, "base64url").toString();
  if (!/^\d{1,15}$/.test(no)) throw invalid([{ path: "cursor", message: "must be the nextCursor of an answer" }]);
  return Number(no);
}

/** The order that the path names, with its payment's reference. */
async function orderOf(ctx: Pick<Context, "db">, c: Http) {
  const id = c.req.param("id") ?? "";
  const reference = referenceOfOrder(id);
  const order = reference && (await findOrder(ctx, id));
  if (!reference || !order) throw new Problem("NOT_FOUND", "no such order");
  return { id, reference, order };
}

async function refund(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const { reason, restock } = check(contract.refundBody, await routes.bodyOf(c));
  const { id, reference, order } = await orderOf(ctx, c);
  const begun = await beginRefund(ctx, reference, { reason, restock });
  if (begun) await door.note("refund", order.saleId, { orderId: id, reason, restock });
  return routes.json(c, 202, (await viewOrders(ctx, [(await findOrder(ctx, id)) ?? order]))[0]);
}

async function resendMail(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const { reason } = check(contract.resendBody, await routes.bodyOf(c));
  const { id: orderId, order } = await orderOf(ctx, c);
  const [queued] = await ctx.db.execute<{ kind: string }>(sql`
    insert into outbox (order_id, kind, sale_id, language)
    select order_id, 'confirmation-' || count(*) + 1, min(sale_id), min(language)
    from outbox where order_id = ${orderId} group by order_id
    on conflict (order_id, kind) do nothing returning kind`);
  // Two operators at the same moment: the one mail is on its way.
  if (queued) await door.note("resend mail", order.saleId, { orderId, reason });
  ctx.work.emit("outbox");
  return routes.json(c, 202, { orderId, queued: true });
}
