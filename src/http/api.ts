/**
 * How a route is written: what it says about itself and its handler side by side; limits, errors and figures in one
 * place.
 */
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { OpenAPIHono } from "@hono/zod-openapi";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { Unavailable } from "../domain/errors.ts";
import { type Answers, makeAnswers, toResponse } from "./answers.ts";
import { type HotRequest, hotRequestOf, makeFastPath, type Reply } from "./fast-path.ts";
import { makeLoadShedding } from "./load-shedding.ts";
import { Problem } from "./problem.ts";
import { bodyText, incomingOf, parseJson, textOf, waitMsOf } from "./requests.ts";
import { describe, pathParams, type RouteSpec } from "./route-spec.ts";

export type Handler = (c: Http) => Response | Promise<Response>;
export type HotHandler = (request: HotRequest) => Reply | Promise<Reply>;

/** Longer than every single time limit of a store on the way, and than a shopper should wait for "unknown". */
const ANSWER_MS_MAX = 10_000;
/** An audit reads several times, and the gateway's whole list. */
const ADMIN_ANSWER_MS_MAX = 60_000;

export interface Routes extends Pick<Answers, "reply" | "json" | "send" | "events"> {
  app: OpenAPIHono;
  /** All routes of the document, in the order in which they were made. */
  specs: RouteSpec[];
  route(spec: RouteSpec, handler: Handler): void;
  /** A route that the fast path answers too (fast-path.ts). */
  hotRoute(spec: RouteSpec, handler: HotHandler): void;
  fastPath(incoming: IncomingMessage, outgoing: ServerResponse): boolean;
  /** The JSON body of a request. */
  bodyOf(c: Http): Promise<unknown>;
}

type RoutesContext = Pick<Context, "config" | "log" | "draining" | "metrics">;

export function makeRoutes(ctx: RoutesContext): Routes {
  const app = new OpenAPIHono();
  const specs: RouteSpec[] = [];
  const answers = makeAnswers(ctx);
  const count = requestCounter(ctx.metrics);
  const fastPath = makeFastPath(ctx.config.bodyBytesMax);
  const kept: Kept = {
    app,
    answers,
    count,
    timerOf: (path) => ctx.metrics.requestSeconds.labels(path),
    loadShedding: makeLoadShedding(ctx.config.inFlightMax, ctx.draining),
    fastPath,
    bodyBytesMax: ctx.config.bodyBytesMax,
  };
  app.onError((error, c) => refused(answers, c, error));
  app.notFound((c) => {
    count("none", 404);
    return refused(answers, c, new Problem("NOT_FOUND", "no such route"));
  });
  const register = (spec: RouteSpec) => {
    specs.push(spec);
    describe(app.openAPIRegistry, spec);
  };
  return {
    app,
    specs,
    reply: answers.reply,
    json: answers.json,
    send: answers.send,
    events: answers.events,
    fastPath: fastPath.take,
    route(spec, handler) {
      register(spec);
      addRoute(kept, spec, handler);
    },
    hotRoute(spec, handler) {
      register(spec);
      addHotRoute(kept, spec, handler);
    },
    bodyOf: (c) => bodyOf(c, ctx.config.bodyBytesMax),
  };
}

/** What all routes share. */
interface Kept {
  app: OpenAPIHono;
  answers: Answers;
  count(route: string, status: number): void;
  timerOf(path: string): { observe(seconds: number): void };
  loadShedding: ReturnType<typeof makeLoadShedding>;
  fastPath: ReturnType<typeof makeFastPath>;
  bodyBytesMax: number;
}

const honoPath = (path: string) => path.replace(/\{(\w+)\}/g, ":$1");
const refused = (answers: Answers, c: Http, error: unknown) =>
  toResponse(answers.refuse(incomingOf(c).headers, c.req.path, error));

/** Counts answers by route and status; a counter is looked for by its labels once. */
function requestCounter(metrics: Context["metrics"]): (route: string, status: number) => void {
  const counters = new Map<string, { inc(): void }>();
  return (route, status) => {
    const key = `${route} ${status}`;
    let counter = counters.get(key);
    if (!counter) {
      counter = metrics.requests.labels(route, String(status));
      counters.set(key, counter);
    }
    counter.inc();
  };
}

function addRoute(kept: Kept, spec: RouteSpec, handler: Handler): void {
  const { answers, loadShedding } = kept;
  const timer = kept.timerOf(spec.path);
  const msMax = spec.who === "admin" ? ADMIN_ANSWER_MS_MAX : ANSWER_MS_MAX;
  // A stream's time is its reader's.
  const isTimed = spec.answers[200]?.type !== "text/event-stream";
  kept.app.on(spec.method.toUpperCase(), honoPath(spec.path), async (c) => {
    const began = performance.now();
    let response: Response;
    try {
      loadShedding.enter(spec.priority);
      const work = Promise.resolve(handler(c));
      work.finally(() => loadShedding.leave(spec.priority)).catch(() => {});
      response = await inTime(work, incomingOf(c).headers, msMax);
    } catch (error) {
      response = refused(answers, c, error);
    }
    kept.count(spec.path, response.status);
    if (response.status < 500 && isTimed) timer.observe((performance.now() - began) / 1000);
    return response;
  });
}

/**
 * A hot route is registered twice: for the fast path of node's server, and with Hono for everything else that Hono does
 * (HEAD, tests, another server).
 */
function addHotRoute(kept: Kept, spec: RouteSpec, handler: HotHandler): void {
  const { answers, loadShedding } = kept;
  const timer = kept.timerOf(spec.path);
  const done = (began: number, entered: boolean, r: Reply) => {
    if (entered) loadShedding.leave(spec.priority);
    kept.count(spec.path, r.status);
    if (r.status < 500) timer.observe((performance.now() - began) / 1000);
    return r;
  };
  const answer = (request: HotRequest, url: string): Reply | Promise<Reply> => {
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
        (error) => done(began, true, answers.refuse(request.headers, url, error)),
      );
    } catch (error) {
      return done(began, entered, answers.refuse(request.headers, url, error));
    }
  };
  kept.fastPath.add(spec.method, spec.path, answer);
  const names = pathParams(spec.path);
  kept.app.on(spec.method.toUpperCase(), honoPath(spec.path), async (c) => {
    const { incoming, outgoing } = c.env as { incoming: IncomingMessage; outgoing: ServerResponse };
    const params = names.map((n) => c.req.param(n) ?? "");
    return toResponse(await answer(hotRequestOf(incoming, outgoing, params, kept.bodyBytesMax), c.req.path));
  });
}

async function bodyOf(c: Http, bytesMax: number): Promise<unknown> {
  const incoming = incomingOf(c);
  return parseJson(await bodyText({ headers: incoming.headers, text: () => textOf(incoming, bytesMax) }));
}

/**
 * Every request ends: a store that takes a question and never answers leaves it open, and the caller asks again with
 * the same id.
 */
function inTime<T>(work: Promise<T>, asked: IncomingHttpHeaders, msMax: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Unavailable("a store did not answer in time", 2000)),
      msMax + waitMsOf(asked),
    );
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
