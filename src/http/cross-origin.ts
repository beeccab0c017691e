/**
 * Pages of other origins ask before they send: what CORS_ORIGINS may send is told here, who they are with every answer
 * (answers.ts).
 */
import type { Context } from "../context.ts";
import type { Routes } from "./api.ts";

export function crossOriginRoute(ctx: Pick<Context, "config">, { app, send }: Routes): void {
  if (ctx.config.corsOrigins.length === 0) return;
  app.options("*", (c) =>
    send(c, 204, null, {
      "access-control-allow-methods": "GET, POST, DELETE",
      "access-control-allow-headers": "authorization, content-type, idempotency-key, prefer",
      "access-control-max-age": "600",
    }),
  );
}
