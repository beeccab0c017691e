/** What the routes of shoppers and those of operators share. Each is made once. */
import type { IncomingHttpHeaders } from "node:http";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { adminLog } from "../stores/schema.ts";
import type { Routes } from "./api.ts";
import { type AdminAuth, customerRate, shopperAuth } from "./auth.ts";
import { incomingOf } from "./requests.ts";
import { makeReturned, type Returned } from "./returned.ts";

export interface ShopperDoor {
  ctx: Context;
  routes: Routes;
  /** Who asks, by their token and within their rate; else UNAUTHENTICATED or RATE_LIMITED. */
  customerOf(headers: IncomingHttpHeaders): string;
  /** Whoever asks about a payment that is open may have come back from the gateway's page. */
  mayHaveReturned: Returned;
}

export function makeShopperDoor(ctx: Context, routes: Routes): ShopperDoor {
  const authenticate = shopperAuth(ctx.config.shopperTokenSecrets ?? []);
  const withinRate = customerRate(ctx.config.customerRatePerS);
  return {
    ctx,
    routes,
    mayHaveReturned: makeReturned(ctx),
    customerOf(headers) {
      const customerId = authenticate(headers.authorization);
      withinRate(customerId);
      return customerId;
    },
  };
}

export interface OperatorDoor {
  ctx: Context;
  routes: Routes;
  /** Throws UNAUTHENTICATED or ADMIN_DISABLED. */
  check(c: Http): void;
  /** Leaves a row of what was done in the admin log. */
  note(action: string, saleId: string | null, detail: Record<string, unknown>): Promise<void>;
}

export function makeOperatorDoor(
  ctx: Context,
  routes: Routes,
  auth: AdminAuth,
  /** Whoever watches the books hears that something was done to them. */
  booksMoved: () => void,
): OperatorDoor {
  return {
    ctx,
    routes,
    check: (c) => auth.check(c.req.method, incomingOf(c).headers),
    async note(action, saleId, detail) {
      booksMoved();
      await ctx.db.insert(adminLog).values({ action, saleId, detail });
      ctx.log.info({ action, saleId, ...detail }, "operator");
    },
  };
}
