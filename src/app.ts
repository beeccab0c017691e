/**
 * The HTTP API: what its routes share, and the list of who registers them: shoppers' in the order of the flow,
 * operators', pages.
 */
import type { Context } from "./context.ts";
import { adminLogRoute } from "./http/admin-log.ts";
import { adminOrderRoutes } from "./http/admin-orders.ts";
import { adminPaymentRoutes } from "./http/admin-payments.ts";
import { adminSaleRoutes } from "./http/admin-sales.ts";
import { makeRoutes, type Routes } from "./http/api.ts";
import { adminAuth } from "./http/auth.ts";
import { crossOriginRoute } from "./http/cross-origin.ts";
import { makeOperatorDoor, makeShopperDoor } from "./http/doors.ts";
import { healthRoutes } from "./http/health.ts";
import { makeInstantRefusals } from "./http/instant-refusals.ts";
import { liveRoute, makeLiveFigures } from "./http/live.ts";
import { documentRoute } from "./http/openapi.ts";
import { orderRoutes } from "./http/orders.ts";
import { payRoutes } from "./http/pay.ts";
import { reservationRoutes } from "./http/reservations.ts";
import { saleRoutes } from "./http/sales.ts";
import { certificateAnswer } from "./web/certificate.tsx";
import { pageRoutes } from "./web/pages.tsx";

export type App = Pick<Routes, "app" | "specs" | "fastPath">;

export function makeApp(ctx: Context): App {
  const routes = makeRoutes(ctx);
  const auth = adminAuth(ctx.config.adminTokens);
  const liveFigures = makeLiveFigures(ctx);
  const instantRefusals = makeInstantRefusals(ctx);
  const shopper = makeShopperDoor(ctx, routes);
  const operator = makeOperatorDoor(ctx, routes, auth, liveFigures.booksMoved);

  saleRoutes(shopper);
  reservationRoutes(shopper, instantRefusals);
  payRoutes(shopper);
  orderRoutes(shopper);
  healthRoutes(ctx, routes);
  adminSaleRoutes(operator, instantRefusals, (c, sale, audit) =>
    certificateAnswer(c, routes, sale, audit, { standalone: true }),
  );
  adminOrderRoutes(operator);
  adminPaymentRoutes(operator);
  adminLogRoute(operator);
  liveRoute(operator, liveFigures);
  pageRoutes(ctx, routes, auth);
  documentRoute(routes);
  crossOriginRoute(ctx, routes);
  return { app: routes.app, specs: routes.specs, fastPath: routes.fastPath };
}
