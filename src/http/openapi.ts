/** `/openapi.json`: the document of every JSON route, made of what the routes say about themselves (route-spec.ts). */
import type { Routes } from "./api.ts";

const HEAD = {
  openapi: "3.1.0",
  info: {
    title: "Fukubukuro",
    version: "1",
    description: "Inventory service for flash sales",
    license: { name: "MIT", identifier: "MIT" },
  },
  servers: [{ url: "/" }],
  tags: [
    { name: "Storefront", description: "what a shop's page or server calls for a shopper" },
    { name: "Operator", description: "what who runs a sale calls; every change leaves an entry in the log" },
    { name: "Operations", description: "what runs the service rather than a sale" },
  ],
};

/** Last: it tells of every route that was made before. */
export function documentRoute({ app, json }: Routes): void {
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
    document ??= JSON.stringify(app.getOpenAPI31Document(HEAD));
    return json(c, 200, document, { "cache-control": "public, max-age=60" });
  });
}
