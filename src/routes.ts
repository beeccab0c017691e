/** How a route is written: its place in the OpenAPI document and its handler side by side; limits, errors and headers in one place. */
import { OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context as Http } from "hono";
import { Overloaded } from "./coalesce.ts";
import type { Context } from "./context.ts";
import { PROBLEMS, Problem, type ProblemCode, problemAnswer } from "./problem.ts";
import { Unavailable } from "./redis.ts";

export interface RouteSpec {
  method: "get" | "post" | "patch" | "delete";
  /** OpenAPI style, `/v1/sales/{saleId}`. */
  path: string;
  summary: string;
  tag: "Storefront" | "Operator" | "Operations";
  who: "anyone" | "shopper" | "admin";
  body?: z.ZodType;
  /** Header parameters by name, with what they mean. */
  headers?: Record<string, string>;
  query?: z.ZodObject;
  answers: Record<number, { description: string; schema?: z.ZodType; type?: string }>;
  problems?: ProblemCode[];
}

export type Handler = (c: Http) => Response | Promise<Response>;

/** What every answer carries; there is nothing here that a browser should run, frame or guess at. */
const SECURITY_HEADERS = {
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
} as const;

const problemSchema = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.number().int(),
    code: z.enum(Object.keys(PROBLEMS) as [ProblemCode, ...ProblemCode[]]),
    detail: z.string(),
    requestId: z.string(),
    retryAfterMs: z.number().int().optional(),
    errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
  })
  .openapi("Problem");

/**
 * A request header. Node has parsed them all already; asking Hono's request would first build a Headers object of them, which
 * costs the hot routes more than their own work.
 */
export function headerOf(c: Http, name: string): string | undefined {
  const incoming = (c.env as { incoming?: { headers: Record<string, string | string[] | undefined> } } | undefined)?.incoming;
  if (!incoming) return c.req.header(name);
  const value = incoming.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

const processMark = Math.random().toString(36).slice(2, 8);
let requests = 0;
const CLIENT_REQUEST_ID = /^[A-Za-z0-9._-]{1,64}$/;

export type Routes = ReturnType<typeof makeRoutes>;

export function makeRoutes(ctx: Context) {
  const app = new OpenAPIHono();
  const specs: RouteSpec[] = [];
  const counters = new Map<string, { inc(): void }>();

  function requestIdOf(c: Http): string {
    const given = headerOf(c, "x-request-id");
    return given && CLIENT_REQUEST_ID.test(given) ? given : `${processMark}-${(++requests).toString(36)}`;
  }

  function corsOf(c: Http): Record<string, string> {
    if (ctx.config.corsOrigins.length === 0) return {};
    const origin = headerOf(c, "origin");
    if (!origin || !ctx.config.corsOrigins.includes(origin)) return { vary: "origin" };
    return { vary: "origin", "access-control-allow-origin": origin, "access-control-expose-headers": "location, retry-after, idempotent-replay, x-request-id" };
  }

  /** Headers of an answer; given ones win. Kept a plain object, which the server writes as it is. */
  function headersOf(c: Http, requestId: string, more: Record<string, string>): Record<string, string> {
    return { ...SECURITY_HEADERS, "x-request-id": requestId, ...corsOf(c), ...(ctx.draining.aborted && { connection: "close" }), ...more };
  }

  function count(route: string, status: number): void {
    const key = `${route} ${status}`;
    let counter = counters.get(key);
    if (!counter) {
      counter = ctx.metrics.requests.labels(route, String(status));
      counters.set(key, counter);
    }
    counter.inc();
  }

  /** Any other body, with the headers every answer carries. */
  function send(c: Http, status: number, body: string | Uint8Array | ReadableStream | null, headers: Record<string, string>): Response {
    // Not c.body: that copies the headers into a Headers object, which the server takes apart again.
    return new Response(body as ConstructorParameters<typeof Response>[0], { status, headers: headersOf(c, requestIdOf(c), headers) });
  }
  const json = (c: Http, status: number, body: unknown, headers: Record<string, string> = {}) =>
    send(c, status, typeof body === "string" ? body : JSON.stringify(body), { "content-type": "application/json", ...headers });

  function problem(c: Http, p: Problem): Response {
    const requestId = requestIdOf(c);
    const { status, body, headers } = problemAnswer(p, requestId);
    return new Response(JSON.stringify(body), { status, headers: headersOf(c, requestId, headers) });
  }

  /** What a thrown error answers. An expected refusal is a Problem; a store that is away leaves the outcome unknown. */
  function refuse(c: Http, error: unknown): Response {
    if (error instanceof Problem) return problem(c, error);
    if (error instanceof Overloaded) return problem(c, new Problem("OVERLOADED", error.message));
    if (error instanceof Unavailable) {
      ctx.log.warn({ err: error, path: c.req.path }, "unavailable");
      return problem(c, new Problem("UNAVAILABLE", error.message, {}, error.retryAfterMs));
    }
    if (isStoreAway(error)) {
      ctx.log.warn({ err: error, path: c.req.path }, "Postgres is away");
      return problem(c, new Problem("UNAVAILABLE", "Postgres does not answer", {}, 2000));
    }
    ctx.log.error({ err: error, path: c.req.path }, "unexpected error");
    return problem(c, new Problem("INTERNAL_ERROR", "Something went wrong on our side; tell us the request id."));
  }

  app.onError((error, c) => refuse(c, error));
  app.notFound((c) => {
    count("none", 404);
    return problem(c, new Problem("NOT_FOUND", "no such route"));
  });

  function route(spec: RouteSpec, handler: Handler): void {
    specs.push(spec);
    const timer = ctx.metrics.requestSeconds.labels(spec.path);
    const params = [...spec.path.matchAll(/\{(\w+)\}/g)].map((m) => m[1] as string);
    const problems = new Set<ProblemCode>([...(spec.problems ?? []), "OVERLOADED", "UNAVAILABLE", "INTERNAL_ERROR"]);
    if (spec.who !== "anyone") problems.add("UNAUTHENTICATED");
    if (spec.who === "admin") problems.add("ADMIN_DISABLED");
    if (spec.who === "shopper") problems.add("RATE_LIMITED");
    if (spec.body) for (const code of ["INVALID_JSON", "BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "INVALID_REQUEST"] as const) problems.add(code);
    if (params.length > 0) problems.add("NOT_FOUND");
    const responses: Record<string, { description: string; content?: Record<string, { schema: z.ZodType }> }> = {};
    for (const code of problems) {
      const status = PROBLEMS[code].status;
      const before = responses[status]?.description;
      responses[status] = { description: before ? `${before}, ${code}` : code, content: { "application/problem+json": { schema: problemSchema } } };
    }
    for (const [status, a] of Object.entries(spec.answers)) {
      responses[status] = { description: a.description, ...(a.schema && { content: { [a.type ?? "application/json"]: { schema: a.schema } } }) };
    }
    app.openAPIRegistry.registerPath({
      method: spec.method,
      path: spec.path,
      summary: spec.summary,
      tags: [spec.tag],
      ...(spec.who !== "anyone" && { security: [{ [spec.who]: [] }] }),
      request: {
        ...(params.length > 0 && { params: z.object(Object.fromEntries(params.map((p) => [p, z.string()]))) }),
        ...(spec.query && { query: spec.query }),
        ...(spec.headers && {
          headers: z.object(Object.fromEntries(Object.entries(spec.headers).map(([h, description]) => [h, z.string().openapi({ description })]))),
        }),
        ...(spec.body && { body: { required: true, content: { "application/json": { schema: spec.body } } } }),
      },
      responses: responses as Parameters<typeof app.openAPIRegistry.registerPath>[0]["responses"],
    });
    app.on(spec.method.toUpperCase(), spec.path.replace(/\{(\w+)\}/g, ":$1"), async (c) => {
      const began = performance.now();
      let response: Response;
      try {
        response = await handler(c);
      } catch (error) {
        response = refuse(c, error);
      }
      count(spec.path, response.status);
      // A stream's time is its reader's.
      if (response.status < 500 && spec.answers[200]?.type !== "text/event-stream") timer.observe((performance.now() - began) / 1000);
      return response;
    });
  }

  /** The JSON body, within the limit. With a Content-Length the server reads no more than that; without one it is counted here. */
  async function bodyOf(c: Http): Promise<unknown> {
    const max = ctx.config.bodyBytesMax;
    const type = headerOf(c, "content-type");
    if (!type || !/^application\/json(\s*;|$)/i.test(type)) throw new Problem("UNSUPPORTED_MEDIA_TYPE");
    const length = headerOf(c, "content-length");
    if (length !== undefined && Number(length) > max) throw new Problem("BODY_TOO_LARGE", `the limit is ${max} bytes`);
    const text = length !== undefined ? await c.req.text() : await countedText(c, max);
    try {
      return JSON.parse(text);
    } catch {
      throw new Problem("INVALID_JSON");
    }
  }

  return { app, specs, route, json, send, bodyOf };
}

async function countedText(c: Http, max: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of (c.req.raw.body ?? []) as AsyncIterable<Uint8Array>) {
    bytes += chunk.length;
    if (bytes > max) throw new Problem("BODY_TOO_LARGE", `the limit is ${max} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Connection faults of postgres.js, also behind drizzle's wrapper. */
export function isStoreAway(error: unknown): boolean {
  const e = error as { code?: string; cause?: { code?: string } };
  const code = e.cause?.code ?? e.code ?? "";
  return /^(CONNECTION_|CONNECT_TIMEOUT|ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|57P|53|08)/.test(code);
}
