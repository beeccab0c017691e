/** What runs the service rather than a sale: health, readiness, figures, and the document of every JSON route. */
import { eq } from "drizzle-orm";
import type { Context } from "../context.ts";
import { orders } from "../stores/schema.ts";
import type { Routes } from "./api.ts";
import * as contract from "./contract.ts";
import { Problem } from "./problem.ts";

export function operationRoutes(ctx: Context, routes: Routes): void {
  const { app, route, json } = routes;
  route(
    {
      method: "get",
      path: "/healthz",
      summary: "The process is alive",
      tag: "Operations",
      who: "anyone",
      answers: { 200: { description: "alive", schema: contract.anyObject } },
    },
    (c) => json(c, 200, { status: "ok" }),
  );

  route(
    {
      method: "get",
      path: "/readyz",
      summary: "Stores are reachable, epochs agree, not draining",
      tag: "Operations",
      who: "anyone",
      answers: { 200: { description: "ready", schema: contract.anyObject } },
    },
    async (c) => {
      if (ctx.draining.aborted) throw new Problem("UNAVAILABLE", "draining");
      await ctx.redis.ready(500);
      await ctx.db.select({ id: orders.id }).from(orders).where(eq(orders.id, "")).limit(1);
      const stopped = ctx.sales.allKnown().find((s) => s.stoppedWhy !== null);
      if (stopped) throw new Problem("UNAVAILABLE", `${stopped.id} is stopped. ${stopped.stoppedWhy}`);
      const stale = ctx.sales.allKnown().filter((s) => !ctx.sales.isRecorded(s));
      if (stale.length > 0) throw new Problem("UNAVAILABLE", `rebuilding ${stale.map((s) => s.id).join(", ")}`);
      return json(c, 200, { status: "ready" });
    },
  );

  app.get("/metrics", async (c) =>
    routes.send(c, 200, await ctx.metrics.text(), { "content-type": ctx.metrics.registry.contentType }),
  );
}

/** Last: it tells of every route that was made before. */
export function documentRoutes(ctx: Context, routes: Routes): void {
  const { app, json } = routes;
  app.openAPIRegistry.registerComponent("securitySchemes", "shopper", {
    type: "http",
    scheme: "bearer",
    bearerFormat: "JWT",
    description: "HS256, claims sub, aud=fukubukuro, exp",
  });
  app.openAPIRegistry.registerComponent("securitySchemes", "admin", {
    type: "http",
    scheme: "bearer",
    description: "ADMIN_TOKEN",
  });
  let document: string | undefined;
  app.get("/openapi.json", (c) => {
    document ??= JSON.stringify(
      app.getOpenAPI31Document({
        openapi: "3.1.0",
        info: { title: "Fukubukuro", version: "1", description: "Inventory service for flash sales" },
        servers: [{ url: "/" }],
      }),
    );
    return json(c, 200, document, { "cache-control": "public, max-age=60" });
  });
  if (ctx.config.corsOrigins.length > 0) {
    app.options("*", (c) =>
      routes.send(c, 204, null, {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization, content-type, idempotency-key, prefer",
        "access-control-max-age": "600",
      }),
    );
  }
}
