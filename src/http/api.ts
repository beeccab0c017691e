/** How a route is written: its place in the OpenAPI document and its handler side by side; limits, errors and headers in one place. */

import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context as Http } from "hono";
import { type SSEStreamingApi, streamSSE } from "hono/streaming";
import type { Context } from "../context.ts";
import { NoSuchItem, NotStorable, Overloaded, Unavailable } from "../domain/errors.ts";
import type { Sale } from "../domain/sale.ts";
import { NAME } from "./contract.ts";
import { makeLoadShedding, type Priority } from "./load-shedding.ts";
import { invalid, PROBLEMS, Problem, type ProblemCode, problemAnswer } from "./problem.ts";

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
  /** Who is let go first when there is too much (load-shedding.ts); absent = never. */
  priority?: Priority;
}

export type Handler = (c: Http) => Response | Promise<Response>;

/** A request of the rush: what its route needs of it, and nothing that would have to be made first. */
export interface HotRequest {
  headers: IncomingHttpHeaders;
  params: string[];
  /** The body, read now and within the limit. */
  text(): Promise<string>;
  /** Aborts when the caller has gone away. */
  gone(): AbortSignal;
}
export interface Reply {
  status: number;
  body: string | null;
  /** Name, value, name, value: what node writes as it is. */
  headers: string[];
}
export type HotHandler = (request: HotRequest) => Reply | Promise<Reply>;

/** What every answer carries; there is nothing here that a browser should run, frame or guess at. */
const SECURITY_HEADERS = {
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
} as const;
const SECURITY_FLAT = Object.entries(SECURITY_HEADERS).flat();

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

/** The request as node has it. Its headers are parsed already; Hono's own Headers object would cost more than the work of a hot route. */
export const incomingOf = (c: Http): IncomingMessage => (c.env as { incoming: IncomingMessage }).incoming;

/** The request as a route of the rush takes it, from whichever door it came. */
function hotRequestOf(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  params: string[],
  bodyMax: number,
): HotRequest {
  return {
    headers: incoming.headers,
    params,
    text: () => textOf(incoming, bodyMax),
    gone() {
      const gone = new AbortController();
      outgoing.once("close", () => gone.abort());
      return gone.signal;
    },
  };
}

export function headerOf(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

const processMark = Math.random().toString(36).slice(2, 8);
let requests = 0;
/** Longer than every single time limit of a store on the way, and than a shopper should wait for "unknown". */
const ANSWER_MS_MAX = 10_000;
/** An audit reads several times, and the gateway's whole list. */
const ADMIN_ANSWER_MS_MAX = 60_000;
const WAIT_S_MAX = 30;
const CLIENT_REQUEST_ID = /^[A-Za-z0-9._-]{1,64}$/;

export type Routes = ReturnType<typeof makeRoutes>;

export function makeRoutes(ctx: Context) {
  const app = new OpenAPIHono();
  const specs: RouteSpec[] = [];
  const counters = new Map<string, { inc(): void }>();
  const loadShedding = makeLoadShedding(ctx.config.inFlightMax, ctx.draining);

  function requestIdOf(asked: IncomingHttpHeaders): string {
    const given = headerOf(asked, "x-request-id");
    return given && CLIENT_REQUEST_ID.test(given) ? given : `${processMark}-${(++requests).toString(36)}`;
  }

  function corsOf(asked: IncomingHttpHeaders): Record<string, string> | null {
    if (ctx.config.corsOrigins.length === 0) return null;
    const { origin } = asked;
    if (!origin || !ctx.config.corsOrigins.includes(origin)) return { vary: "origin" };
    return {
      vary: "origin",
      "access-control-allow-origin": origin,
      "access-control-expose-headers": "location, retry-after, idempotent-replay, x-request-id",
    };
  }

  /** Headers of an answer with a body of its own kind; given ones win. */
  function headersOf(
    asked: IncomingHttpHeaders,
    requestId: string,
    more: Record<string, string>,
  ): Record<string, string> {
    const draining = ctx.draining.aborted && { connection: "close" };
    return {
      ...SECURITY_HEADERS,
      "cache-control": "no-store",
      "x-request-id": requestId,
      ...corsOf(asked),
      ...draining,
      ...more,
    };
  }

  /** The same as a flat list, made without building an object on the way: this runs for every answer of the rush. */
  function flatHeaders(
    asked: IncomingHttpHeaders,
    requestId: string,
    type: string,
    more: Record<string, string> | null,
  ): string[] {
    const flat = SECURITY_FLAT.slice();
    flat.push("x-request-id", requestId, "content-type", type);
    if (!more?.["cache-control"]) flat.push("cache-control", "no-store");
    for (const name in more) flat.push(name, more[name] as string);
    const cors = corsOf(asked);
    for (const name in cors) flat.push(name, cors[name] as string);
    if (ctx.draining.aborted) flat.push("connection", "close");
    return flat;
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

  function reply(
    asked: IncomingHttpHeaders,
    status: number,
    body: unknown,
    headers: Record<string, string> | null = null,
  ): Reply {
    const text = typeof body === "string" || body === null ? body : JSON.stringify(body);
    return { status, body: text, headers: flatHeaders(asked, requestIdOf(asked), "application/json", headers) };
  }

  /** Any other body, with the headers every answer carries. */
  function send(
    c: Http,
    status: number,
    body: string | Uint8Array | ReadableStream | null,
    headers: Record<string, string>,
  ): Response {
    const asked = incomingOf(c).headers;
    // Not c.body: that copies the headers into a Headers object, which the server takes apart again.
    return new Response(body as ConstructorParameters<typeof Response>[0], {
      status,
      headers: headersOf(asked, requestIdOf(asked), headers),
    });
  }
  /** An event stream, with the headers every answer carries. `gone` aborts when the reader has gone away. */
  function events(c: Http, write: (stream: SSEStreamingApi, gone: AbortSignal) => Promise<void>): Response {
    const asked = incomingOf(c).headers;
    for (const [name, value] of Object.entries(headersOf(asked, requestIdOf(asked), {}))) c.header(name, value);
    return streamSSE(c, (stream) => {
      const gone = new AbortController();
      stream.onAbort(() => gone.abort());
      return write(stream, gone.signal);
    });
  }
  function toResponse(r: Reply): Response {
    const headers: Record<string, string> = {};
    for (let i = 0; i < r.headers.length; i += 2) headers[r.headers[i] as string] = r.headers[i + 1] as string;
    return new Response(r.body, { status: r.status, headers });
  }
  const json = (c: Http, status: number, body: unknown, headers: Record<string, string> | null = null) =>
    toResponse(reply(incomingOf(c).headers, status, body, headers));

  function problem(asked: IncomingHttpHeaders, p: Problem): Reply {
    const requestId = requestIdOf(asked);
    const { status, body, headers } = problemAnswer(p, requestId);
    return {
      status,
      body: JSON.stringify(body),
      headers: flatHeaders(asked, requestId, "application/problem+json", headers),
    };
  }

  /** What a thrown error answers. An expected refusal is a Problem; a store that is away leaves the outcome unknown. */
  function refuse(asked: IncomingHttpHeaders, path: string, error: unknown): Reply {
    if (error instanceof Problem) return problem(asked, error);
    if (error instanceof NoSuchItem) return problem(asked, new Problem("NOT_FOUND", error.message));
    if (error instanceof NotStorable) return problem(asked, invalid([{ path: error.path, message: error.message }]));
    if (error instanceof Overloaded) return problem(asked, new Problem("OVERLOADED", error.message));
    if (error instanceof Unavailable) {
      ctx.log.warn({ err: error, path }, "unavailable");
      return problem(asked, new Problem("UNAVAILABLE", error.message, {}, error.retryAfterMs));
    }
    if (isStoreAway(error)) {
      ctx.log.warn({ err: error, path }, "Postgres is away");
      return problem(asked, new Problem("UNAVAILABLE", "Postgres does not answer", {}, 2000));
    }
    ctx.log.error({ err: error, path }, "unexpected error");
    return problem(asked, new Problem("INTERNAL_ERROR", "Something went wrong on our side; tell us the request id."));
  }

  const refused = (c: Http, error: unknown) => toResponse(refuse(incomingOf(c).headers, c.req.path, error));
  app.onError((error, c) => refused(c, error));
  app.notFound((c) => {
    count("none", 404);
    return refused(c, new Problem("NOT_FOUND", "no such route"));
  });

  function register(spec: RouteSpec): void {
    specs.push(spec);
    const params = [...spec.path.matchAll(/\{(\w+)\}/g)].map((m) => m[1] as string);
    const problems = new Set<ProblemCode>([...(spec.problems ?? []), "OVERLOADED", "UNAVAILABLE", "INTERNAL_ERROR"]);
    if (spec.who !== "anyone") problems.add("UNAUTHENTICATED");
    if (spec.who === "admin") problems.add("ADMIN_DISABLED");
    if (spec.who === "shopper") problems.add("RATE_LIMITED");
    if (spec.body)
      for (const code of ["INVALID_JSON", "BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "INVALID_REQUEST"] as const)
        problems.add(code);
    if (params.length > 0) problems.add("NOT_FOUND");
    const responses: Record<string, { description: string; content?: Record<string, { schema: z.ZodType }> }> = {};
    for (const code of problems) {
      const status = PROBLEMS[code].status;
      const before = responses[status]?.description;
      responses[status] = {
        description: before ? `${before}, ${code}` : code,
        content: { "application/problem+json": { schema: problemSchema } },
      };
    }
    for (const [status, a] of Object.entries(spec.answers)) {
      responses[status] = {
        description: a.description,
        ...(a.schema && { content: { [a.type ?? "application/json"]: { schema: a.schema } } }),
      };
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
          headers: z.object(
            Object.fromEntries(
              Object.entries(spec.headers).map(([h, description]) => [h, z.string().openapi({ description })]),
            ),
          ),
        }),
        ...(spec.body && { body: { required: true, content: { "application/json": { schema: spec.body } } } }),
      },
      responses: responses as Parameters<typeof app.openAPIRegistry.registerPath>[0]["responses"],
    });
  }
  const honoPath = (spec: RouteSpec) => spec.path.replace(/\{(\w+)\}/g, ":$1");

  function route(spec: RouteSpec, handler: Handler): void {
    register(spec);
    const timer = ctx.metrics.requestSeconds.labels(spec.path);
    app.on(spec.method.toUpperCase(), honoPath(spec), async (c) => {
      const began = performance.now();
      let response: Response;
      try {
        loadShedding.enter(spec.priority);
        const work = Promise.resolve(handler(c));
        work.finally(() => loadShedding.leave(spec.priority)).catch(() => {});
        response = await inTime(
          work,
          incomingOf(c).headers,
          spec.who === "admin" ? ADMIN_ANSWER_MS_MAX : ANSWER_MS_MAX,
        );
      } catch (error) {
        response = refused(c, error);
      }
      count(spec.path, response.status);
      // A stream's time is its reader's.
      if (response.status < 500 && spec.answers[200]?.type !== "text/event-stream")
        timer.observe((performance.now() - began) / 1000);
      return response;
    });
  }

  // ---- the rush: answered on node's own request and response (bench/README.md: half the cost) ----

  interface HotRoute {
    method: string;
    path: RegExp;
    run(request: HotRequest, url: string): Reply | Promise<Reply>;
  }
  const hotRoutes: HotRoute[] = [];

  /** A hot route. It has two doors: node's own for the server, Hono's for everything else that Hono does (HEAD, tests, another server). */
  function hotRoute(spec: RouteSpec, handler: HotHandler): void {
    register(spec);
    const timer = ctx.metrics.requestSeconds.labels(spec.path);
    const done = (began: number, entered: boolean, r: Reply) => {
      if (entered) loadShedding.leave(spec.priority);
      count(spec.path, r.status);
      if (r.status < 500) timer.observe((performance.now() - began) / 1000);
      return r;
    };
    const run = (request: HotRequest, url: string): Reply | Promise<Reply> => {
      const began = performance.now();
      let entered = false;
      try {
        loadShedding.enter(spec.priority);
        entered = true;
        const r = handler(request);
        if (!(r instanceof Promise)) return done(began, entered, r);
        // Redis' own time limit bounds the others; a timer for each of them would cost more than it guards.
        return (spec.priority === "finish" ? inTime(r, request.headers, ANSWER_MS_MAX) : r).then(
          (settled) => done(began, true, settled),
          (error) => done(began, true, refuse(request.headers, url, error)),
        );
      } catch (error) {
        return done(began, entered, refuse(request.headers, url, error));
      }
    };
    const names = [...spec.path.matchAll(/\{(\w+)\}/g)].map((m) => m[1] as string);
    hotRoutes.push({
      method: spec.method.toUpperCase(),
      path: new RegExp(`^${spec.path.replace(/\{\w+\}/g, "([^/?%]+)")}(?:\\?|$)`),
      run,
    });
    app.on(spec.method.toUpperCase(), honoPath(spec), async (c) => {
      const { incoming, outgoing } = c.env as { incoming: IncomingMessage; outgoing: ServerResponse };
      const params = names.map((n) => c.req.param(n) ?? "");
      return toResponse(await run(hotRequestOf(incoming, outgoing, params, ctx.config.bodyBytesMax), c.req.path));
    });
  }

  /** Takes a request of the rush; false leaves it to Hono. */
  function fastPath(incoming: IncomingMessage, outgoing: ServerResponse): boolean {
    const url = incoming.url as string;
    for (const r of hotRoutes) {
      if (r.method !== incoming.method) continue;
      const found = r.path.exec(url);
      if (!found) continue;
      const answered = r.run(hotRequestOf(incoming, outgoing, found.slice(1), ctx.config.bodyBytesMax), url);
      if (answered instanceof Promise) void answered.then((reply) => writeSoon(outgoing, reply));
      else writeSoon(outgoing, answered);
      return true;
    }
    return false;
  }

  /** The body's text, within the limit. */
  async function bodyText({ headers, text }: Pick<HotRequest, "headers" | "text">): Promise<string> {
    const type = headers["content-type"];
    if (!type || !/^application\/json(\s*;|$)/i.test(type)) throw new Problem("UNSUPPORTED_MEDIA_TYPE");
    return text();
  }

  async function bodyOf(c: Http): Promise<unknown> {
    const incoming = incomingOf(c);
    return parseJson(
      await bodyText({ headers: incoming.headers, text: () => textOf(incoming, ctx.config.bodyBytesMax) }),
    );
  }

  return { app, specs, route, hotRoute, fastPath, reply, json, send, events, bodyOf, bodyText };
}

/** The sale of that id, else NOT_FOUND; what cannot be an id is asked for nowhere. */
export async function findSale(ctx: Context, id: string | undefined): Promise<Sale> {
  const sale = id !== undefined && NAME.test(id) ? await ctx.sales.get(id) : null;
  if (!sale) throw new Problem("NOT_FOUND", "no such sale");
  return sale;
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem("INVALID_JSON");
  }
}

/**
 * Answers of one turn of the event loop are written together, after all requests of the turn were taken: the other side is woken once for
 * many, and sends its next ones together too (bench/README.md: a third of the cost of an answer was waking the reader).
 */
let soon: Array<[ServerResponse, Reply]> = [];
function writeSoon(outgoing: ServerResponse, reply: Reply): void {
  if (soon.push([outgoing, reply]) === 1) setImmediate(writeAll);
}
function writeAll(): void {
  const all = soon;
  soon = [];
  for (const [outgoing, r] of all) {
    if (outgoing.destroyed) continue;
    if (r.body !== null) r.headers.push("content-length", String(Buffer.byteLength(r.body)));
    outgoing.writeHead(r.status, r.headers);
    outgoing.end(r.body);
  }
}

/** Every request ends: a store that takes a question and never answers leaves it open, and the caller asks again with the same id. */
function inTime<T>(work: Promise<T>, asked: IncomingHttpHeaders, msMax: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Unavailable("a store did not answer in time", 2000)),
      msMax + waitMsOf(asked),
    );
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** `Prefer: wait=10`, in ms; 30 s at most. */
export function waitMsOf(asked: IncomingHttpHeaders): number {
  const seconds = /(?:^|[,;\s])wait=(\d{1,6})(?:[,;\s]|$)/.exec(headerOf(asked, "prefer") ?? "")?.[1];
  return seconds === undefined ? 0 : Math.min(Number(seconds), WAIT_S_MAX) * 1000;
}

const tooLarge = (max: number) => new Problem("BODY_TOO_LARGE", `the limit is ${max} bytes`);

/** Reads the body. With a Content-Length the server reads no more than that; without one it is counted here. */
function textOf(incoming: IncomingMessage, max: number): Promise<string> {
  return new Promise((resolve, reject) => {
    if (Number(incoming.headers["content-length"] ?? 0) > max) return reject(tooLarge(max));
    const chunks: Buffer[] = [];
    let bytes = 0;
    incoming.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= max) chunks.push(chunk);
      else reject(tooLarge(max)); // the rest is read and thrown away; requestTimeout bounds it
    });
    incoming.on("end", () =>
      resolve(chunks.length === 1 ? (chunks[0] as Buffer).toString("utf8") : Buffer.concat(chunks).toString("utf8")),
    );
    incoming.on("error", () => reject(new Problem("INVALID_JSON", "the body did not arrive")));
  });
}

/** Connection faults of postgres.js, also behind drizzle's wrapper. */
export function isStoreAway(error: unknown): boolean {
  const e = error as { code?: string; cause?: { code?: string } };
  const code = e.cause?.code ?? e.code ?? "";
  return /^(CONNECTION_|CONNECT_TIMEOUT|ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|57P|53|08)/.test(code);
}
