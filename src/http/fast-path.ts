/**
 * The fast path: hot routes are answered on node's own request and response, before a web Request is made of them,
 * which halves the cost of an answer (bench/README.md). Their handlers are written like all others (api.ts), and Hono
 * has the same routes too.
 */
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { textOf } from "./requests.ts";

/** A hot request: what its route needs of it, and nothing that would have to be made first. */
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

/** Answers always: what was thrown has become a problem. */
export type Answer = (request: HotRequest, url: string) => Reply | Promise<Reply>;

interface HotRoute {
  method: string;
  path: RegExp;
  answer: Answer;
}

export function hotRequestOf(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  params: string[],
  bodyBytesMax: number,
): HotRequest {
  return {
    headers: incoming.headers,
    params,
    text: () => textOf(incoming, bodyBytesMax),
    gone() {
      const gone = new AbortController();
      outgoing.once("close", () => gone.abort());
      return gone.signal;
    },
  };
}

export function makeFastPath(bodyBytesMax: number) {
  const hotRoutes: HotRoute[] = [];
  return {
    /** `path` in OpenAPI's style; its parameters come in their order. */
    add(method: string, path: string, answer: Answer): void {
      const pattern = new RegExp(`^${path.replace(/\{\w+\}/g, "([^/?%]+)")}(?:\\?|$)`);
      hotRoutes.push({ method: method.toUpperCase(), path: pattern, answer });
    },

    /** Takes a request of a hot route; false leaves it to Hono. */
    take(incoming: IncomingMessage, outgoing: ServerResponse): boolean {
      const url = incoming.url as string;
      for (const r of hotRoutes) {
        if (r.method !== incoming.method) continue;
        const found = r.path.exec(url);
        if (!found) continue;
        const answered = r.answer(hotRequestOf(incoming, outgoing, found.slice(1), bodyBytesMax), url);
        if (answered instanceof Promise) void answered.then((reply) => writeSoon(outgoing, reply));
        else writeSoon(outgoing, answered);
        return true;
      }
      return false;
    },
  };
}

/**
 * Answers of one turn of the event loop are written together, after all requests of the turn were taken: the other side
 * is woken once for many, and sends its next ones together too (bench/README.md: a third of the cost of an answer was
 * waking the reader).
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
