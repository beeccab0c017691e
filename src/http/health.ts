/** What runs the service rather than a sale: whether the process lives, whether it is ready, and its figures. */
import { eq } from "drizzle-orm";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { orders } from "../stores/schema.ts";
import type { Routes } from "./api.ts";
import * as contract from "./contract.ts";
import * as examples from "./examples.ts";
import { Problem } from "./problem.ts";
import type { RouteSpec } from "./route-spec.ts";

const who = { tag: "Operations", who: "anyone" } as const;

const ALIVE: RouteSpec = {
  ...who,
  method: "get",
  path: "/healthz",
  operationId: "isAlive",
  summary: "The process is alive",
  description: "Asks nobody: a process that answers is alive.",
  answers: { 200: { description: "alive", content: { schema: contract.aliveView, example: examples.alive } } },
};

const READY: RouteSpec = {
  ...who,
  method: "get",
  path: "/readyz",
  operationId: "isReady",
  summary: "Stores are reachable, epochs agree, not draining",
  description:
    "503 while Redis or Postgres does not answer, while a sale is being rebuilt, and while the process drains.",
  answers: { 200: { description: "ready", content: { schema: contract.readyView, example: examples.ready } } },
};

const REDIS_MS_MAX = 500;

type HealthContext = Pick<Context, "db" | "draining" | "metrics" | "redis" | "sales">;

export function healthRoutes(ctx: HealthContext, routes: Routes): void {
  routes.route(ALIVE, (c) => routes.json(c, 200, { status: "ok" }));
  routes.route(READY, (c) => isReady(ctx, routes, c));
  routes.app.get("/metrics", (c) => figures(ctx, routes, c));
}

async function isReady(ctx: HealthContext, routes: Routes, c: Http): Promise<Response> {
  if (ctx.draining.aborted) throw new Problem("UNAVAILABLE", "draining");
  await ctx.redis.ready(REDIS_MS_MAX);
  await ctx.db.select({ id: orders.id }).from(orders).where(eq(orders.id, "")).limit(1);
  const stopped = ctx.sales.allKnown().find((s) => s.stoppedWhy !== null);
  if (stopped) throw new Problem("UNAVAILABLE", `${stopped.id} is stopped. ${stopped.stoppedWhy}`);
  const stale = ctx.sales.allKnown().filter((s) => !ctx.sales.isRecorded(s));
  if (stale.length > 0) throw new Problem("UNAVAILABLE", `rebuilding ${stale.map((s) => s.id).join(", ")}`);
  return routes.json(c, 200, { status: "ready" });
}

async function figures({ metrics }: HealthContext, routes: Routes, c: Http): Promise<Response> {
  return routes.send(c, 200, await metrics.text(), { "content-type": metrics.registry.contentType });
}
