/** Sales as operators see and change them. */
import type { Context as Http } from "hono";
import type { Sale } from "../domain/sale.ts";
import { type Audit, auditSale } from "../recover/audit.ts";
import { noteDenied } from "../recover/denied.ts";
import { reconcileOnce } from "../recover/reconcile.ts";
import { topUp } from "../stages/top-up.ts";
import * as admin from "./admin-contract.ts";
import * as contract from "./contract.ts";
import { check, checkIdempotencyKey } from "./contract.ts";
import type { OperatorDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import type { InstantRefusals } from "./instant-refusals.ts";
import { findSale } from "./lookups.ts";
import { Problem } from "./problem.ts";
import { headerOf, incomingOf, prefers } from "./requests.ts";
import type { RouteSpec } from "./route-spec.ts";
import { createSale, patchSale } from "./sale-changes.ts";
import { saleFigures } from "./sale-figures.ts";

const who = { tag: "Operator", who: "admin" } as const;

const CREATE_SALE: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/sales",
  operationId: "createSale",
  summary: "Create a sale",
  description: "Idempotent by id and body: the same again answers the sale, another body under the same id is refused.",
  body: contract.saleBody,
  bodyExample: examples.createSale,
  answers: {
    201: { description: "created", content: { schema: admin.saleFiguresView, example: examples.saleFigures } },
    200: {
      description: "the same was created before",
      content: { schema: admin.saleFiguresView, example: examples.saleFigures },
    },
  },
  problems: ["SALE_EXISTS"],
};

const LIST_SALES: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/admin/sales",
  operationId: "listSales",
  summary: "All sales with their figures",
  description: "In the order in which they were created.",
  answers: {
    200: { description: "sales", content: { schema: admin.salesFiguresView, example: examples.salesFigures } },
  },
};

const READ_SALE: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/admin/sales/{saleId}",
  operationId: "readSaleFigures",
  summary: "A sale with its figures",
  description: "Settings, units by item, gates, open payments, journal and outbox.",
  answers: {
    200: { description: "the sale", content: { schema: admin.saleFiguresView, example: examples.saleFigures } },
  },
};

const PATCH_SALE: RouteSpec = {
  ...who,
  method: "patch",
  path: "/v1/admin/sales/{saleId}",
  operationId: "patchSale",
  summary: "Pause or resume reserving and paying, close, extend every live hold; correct names and texts",
  description:
    "Paused paying stops the clocks of all holds; resumed, every deadline moves by as long. `closesAt` in the past closes.",
  body: contract.patchBody,
  bodyExample: examples.patchSale,
  answers: {
    200: { description: "the sale", content: { schema: admin.saleFiguresView, example: examples.saleFigures } },
  },
};

const TOP_UP: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/sales/{saleId}/items/{sku}/stock",
  operationId: "topUp",
  summary: "Top-up: put units on sale, or take free ones away",
  description: "Never below what is held or sold. The same `Idempotency-Key` answers the first result again.",
  headers: { "Idempotency-Key": contract.IDEMPOTENCY_KEY_HEADER },
  body: contract.topUpBody,
  bodyExample: examples.topUp,
  answers: {
    200: { description: "the item's figures", content: { schema: admin.toppedUpView, example: examples.toppedUp } },
  },
  problems: ["BELOW_COMMITTED", "IDEMPOTENCY_MISMATCH"],
};

const AUDIT_SALE: RouteSpec = {
  ...who,
  method: "get",
  path: "/v1/admin/sales/{saleId}/audit",
  operationId: "auditSale",
  summary: "The books; as text/html the certificate",
  description:
    "Over Redis, Postgres, the gateways' own ledgers and the outbox, read until they agree or a difference stands. `Accept: text/html` is answered with the certificate.",
  answers: {
    200: {
      description: "the books",
      content: { schema: admin.auditView, example: examples.audit },
      texts: { "text/html": examples.certificate },
    },
  },
};

const RECONCILE: RouteSpec = {
  ...who,
  method: "post",
  path: "/v1/admin/sales/{saleId}/reconcile",
  operationId: "reconcile",
  summary: "Run reconcile now",
  description:
    "Finishes what a crash or a lost answer left open, of all sales; the service does so by itself all the time.",
  answers: {
    200: { description: "what it did", content: { schema: admin.reconciledView, example: examples.reconciled } },
  },
};

/** The books as a page that can be kept as a file. Made by who makes pages. */
export type CertificatePage = (c: Http, sale: Sale, audit: Audit) => Promise<Response>;

export function adminSaleRoutes(
  door: OperatorDoor,
  instantRefusals: InstantRefusals,
  certificatePage: CertificatePage,
): void {
  const { route } = door.routes;
  route(CREATE_SALE, (c) => create(door, c));
  route(LIST_SALES, (c) => list(door, c));
  route(READ_SALE, (c) => read(door, c));
  route(PATCH_SALE, (c) => patch(door, instantRefusals, c));
  route(TOP_UP, (c) => changeStock(door, instantRefusals, c));
  route(AUDIT_SALE, (c) => audit(door, certificatePage, c));
  route(RECONCILE, (c) => reconcile(door, c));
}

async function create(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const { sale, created } = await createSale(ctx, check(contract.saleBody, await routes.bodyOf(c)));
  if (created) await door.note("create sale", sale.id, {});
  return routes.json(c, created ? 201 : 200, await saleFigures(ctx, sale));
}

async function list(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  return routes.json(c, 200, { sales: await Promise.all((await ctx.sales.all()).map((s) => saleFigures(ctx, s))) });
}

async function read(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  return routes.json(c, 200, await saleFigures(ctx, await findSale(ctx, c.req.param("saleId"))));
}

async function patch(door: OperatorDoor, instantRefusals: InstantRefusals, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const changes = check(contract.patchBody, await routes.bodyOf(c));
  const sale = await findSale(ctx, c.req.param("saleId"));
  await patchSale(ctx, sale, changes);
  instantRefusals.forget(sale);
  await door.note("patch sale", sale.id, changes);
  return routes.json(c, 200, await saleFigures(ctx, sale));
}

async function changeStock(door: OperatorDoor, instantRefusals: InstantRefusals, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const idempotencyKey = checkIdempotencyKey(headerOf(incomingOf(c).headers, "idempotency-key"));
  const { delta, reason } = check(contract.topUpBody, await routes.bodyOf(c));
  const sale = await findSale(ctx, c.req.param("saleId"));
  const sku = c.req.param("sku") ?? "";
  if (!sale.items.has(sku)) throw new Problem("NOT_FOUND", "this sale has no such item");
  const done = await topUp(ctx, sale, { sku, delta, reason, idempotencyKey });
  instantRefusals.forget(sale);
  switch (done.outcome) {
    case "MISMATCH":
      throw new Problem("IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used for another change");
    case "BELOW_COMMITTED":
      throw new Problem("BELOW_COMMITTED", `only ${done.free} units are free`, { free: done.free });
    case "DONE":
      if (!done.replayed) await door.note("top-up", sale.id, { sku, delta, reason });
      return routes.json(c, 200, { ...done.counts, replayed: done.replayed });
  }
}

async function audit(door: OperatorDoor, certificatePage: CertificatePage, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const sale = await findSale(ctx, c.req.param("saleId"));
  const books = await auditSale(ctx, sale.id, sale.no);
  await noteDenied(ctx, books);
  return prefers(c, "text/html") ? certificatePage(c, sale, books) : routes.json(c, 200, books);
}

async function reconcile(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const sale = await findSale(ctx, c.req.param("saleId"));
  const done = await reconcileOnce(ctx, { walk: true });
  await door.note("reconcile", sale.id, { ...done });
  return routes.json(c, 200, done);
}
