/** The sale as shoppers see it. */
import type { IncomingHttpHeaders } from "node:http";
import * as contract from "./contract.ts";
import type { ShopperDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import type { HotRequest, Reply } from "./fast-path.ts";
import { findSale } from "./lookups.ts";
import type { RouteSpec } from "./route-spec.ts";
import { type SaleText, type SaleViewer, saleViewer } from "./views.ts";

const READ_SALE: RouteSpec = {
  method: "get",
  path: "/v1/sales/{saleId}",
  operationId: "readSale",
  priority: "read",
  summary: "A sale with live availability, at most 250 ms old",
  description:
    "Made at most every 250 ms, however many read it. `ETag` and `If-None-Match` save the body while nothing has changed.",
  tag: "Storefront",
  who: "anyone",
  answers: {
    200: { description: "the sale", content: { schema: contract.saleView, example: examples.sale } },
    304: { description: "unchanged since the given ETag" },
  },
};

export function saleRoutes(door: ShopperDoor): void {
  const viewer = saleViewer(door.ctx);
  door.routes.hotRoute(READ_SALE, (request) => readSale(door, viewer, request));
}

/** Without a promise when the text is there: that is what nearly every reader gets. */
function readSale(door: ShopperDoor, viewer: SaleViewer, request: HotRequest): Reply | Promise<Reply> {
  const { headers } = request;
  const saleId = request.params[0] ?? "";
  const sale = door.ctx.sales.known(saleId);
  const seen = sale && viewer.last(sale);
  return seen ? saleAnswer(door, headers, seen) : readSaleAnew(door, viewer, headers, saleId);
}

async function readSaleAnew(
  door: ShopperDoor,
  viewer: SaleViewer,
  asked: IncomingHttpHeaders,
  saleId: string,
): Promise<Reply> {
  return saleAnswer(door, asked, await viewer.fresh(await findSale(door.ctx, saleId)));
}

function saleAnswer({ routes }: ShopperDoor, asked: IncomingHttpHeaders, { text, etag }: SaleText): Reply {
  const headers = { "cache-control": "public, max-age=1", etag };
  return asked["if-none-match"] === etag
    ? routes.reply(asked, 304, null, headers)
    : routes.reply(asked, 200, text, headers);
}
