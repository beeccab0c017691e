/** How an answer is made: the headers that each carries, JSON, streams, and what a thrown error becomes. */
import type { IncomingHttpHeaders } from "node:http";
import type { Context as Http } from "hono";
import { type SSEStreamingApi, streamSSE } from "hono/streaming";
import type { Context } from "../context.ts";
import { NoSuchItem, NotStorable, Overloaded, Unavailable } from "../domain/errors.ts";
import type { Reply } from "./fast-path.ts";
import { invalid, Problem, problemAnswer } from "./problem.ts";
import { headerOf, incomingOf } from "./requests.ts";

/** What every answer carries; there is nothing here that a browser should run, frame or guess at. */
const SECURITY_HEADERS = {
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
} as const;
const SECURITY_FLAT = Object.entries(SECURITY_HEADERS).flat();

const processMark = Math.random().toString(36).slice(2, 8);
let requests = 0;
const CLIENT_REQUEST_ID = /^[A-Za-z0-9._-]{1,64}$/;

function requestIdOf(asked: IncomingHttpHeaders): string {
  const given = headerOf(asked, "x-request-id");
  return given && CLIENT_REQUEST_ID.test(given) ? given : `${processMark}-${(++requests).toString(36)}`;
}

function makeHeaders(ctx: Pick<Context, "config" | "draining">) {
  const { corsOrigins } = ctx.config;

  function corsOf(asked: IncomingHttpHeaders): Record<string, string> | null {
    if (corsOrigins.length === 0) return null;
    const { origin } = asked;
    if (!origin || !corsOrigins.includes(origin)) return { vary: "origin" };
    return {
      vary: "origin",
      "access-control-allow-origin": origin,
      "access-control-expose-headers": "location, retry-after, idempotent-replay, x-request-id",
    };
  }

  /** Headers of an answer with a body of its own kind; given ones win. */
  function headersOf(asked: IncomingHttpHeaders, more: Record<string, string>): Record<string, string> {
    const draining = ctx.draining.aborted && { connection: "close" };
    return {
      ...SECURITY_HEADERS,
      "cache-control": "no-store",
      "x-request-id": requestIdOf(asked),
      ...corsOf(asked),
      ...draining,
      ...more,
    };
  }

  /** The same as a flat list, made without building an object on the way: this runs for every answer of a hot route. */
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

  return { headersOf, flatHeaders };
}

export type Answers = ReturnType<typeof makeAnswers>;

export function makeAnswers(ctx: Pick<Context, "config" | "log" | "draining">) {
  const { headersOf, flatHeaders } = makeHeaders(ctx);

  function reply(
    asked: IncomingHttpHeaders,
    status: number,
    body: unknown,
    headers: Record<string, string> | null = null,
  ): Reply {
    const text = typeof body === "string" || body === null ? body : JSON.stringify(body);
    return { status, body: text, headers: flatHeaders(asked, requestIdOf(asked), "application/json", headers) };
  }

  const json = (c: Http, status: number, body: unknown, headers: Record<string, string> | null = null) =>
    toResponse(reply(incomingOf(c).headers, status, body, headers));

  /** Any other body, with the headers every answer carries. */
  function send(
    c: Http,
    status: number,
    body: string | Uint8Array | ReadableStream | null,
    headers: Record<string, string>,
  ): Response {
    // Not c.body: that copies the headers into a Headers object, which the server takes apart again.
    return new Response(body as ConstructorParameters<typeof Response>[0], {
      status,
      headers: headersOf(incomingOf(c).headers, headers),
    });
  }

  function problem(asked: IncomingHttpHeaders, p: Problem): Reply {
    const requestId = requestIdOf(asked);
    const { status, body, headers } = problemAnswer(p, requestId);
    return {
      status,
      body: JSON.stringify(body),
      headers: flatHeaders(asked, requestId, "application/problem+json", headers),
    };
  }

  const refuse = (asked: IncomingHttpHeaders, path: string, error: unknown): Reply =>
    problem(asked, problemOf(ctx.log, path, error));

  /** An event stream, with the headers every answer carries. `gone` aborts when the reader has gone away. */
  function events(c: Http, write: (stream: SSEStreamingApi, gone: AbortSignal) => Promise<void>): Response {
    for (const [name, value] of Object.entries(headersOf(incomingOf(c).headers, {}))) c.header(name, value);
    return streamSSE(c, (stream) => {
      const gone = new AbortController();
      stream.onAbort(() => gone.abort());
      return write(stream, gone.signal);
    });
  }

  return { reply, json, send, events, refuse };
}

/** What a thrown error answers. An expected refusal is a Problem; a store that is away leaves the outcome unknown. */
function problemOf(log: Context["log"], path: string, error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof NoSuchItem) return new Problem("NOT_FOUND", error.message);
  if (error instanceof NotStorable) return invalid([{ path: error.path, message: error.message }]);
  if (error instanceof Overloaded) return new Problem("OVERLOADED", error.message);
  if (error instanceof Unavailable) {
    log.warn({ err: error, path }, "unavailable");
    return new Problem("UNAVAILABLE", error.message, {}, error.retryAfterMs);
  }
  if (isStoreAway(error)) {
    log.warn({ err: error, path }, "Postgres is away");
    return new Problem("UNAVAILABLE", "Postgres does not answer", {}, 2000);
  }
  log.error({ err: error, path }, "unexpected error");
  return new Problem("INTERNAL_ERROR", "Something went wrong on our side; tell us the request id.");
}

export function toResponse(r: Reply): Response {
  const headers: Record<string, string> = {};
  for (let i = 0; i < r.headers.length; i += 2) headers[r.headers[i] as string] = r.headers[i + 1] as string;
  return new Response(r.body, { status: r.status, headers });
}

/** Connection faults of postgres.js, also behind drizzle's wrapper. */
export function isStoreAway(error: unknown): boolean {
  const e = error as { code?: string; cause?: { code?: string } };
  const code = e.cause?.code ?? e.code ?? "";
  return /^(CONNECTION_|CONNECT_TIMEOUT|ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|57P|53|08)/.test(code);
}
