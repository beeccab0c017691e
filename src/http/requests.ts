/** What is read of a request: headers, the body within its limit, and how long the caller wants to wait. */
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import type { Context as Http } from "hono";
import { Problem } from "./problem.ts";

const WAIT_S_MAX = 30;

/**
 * The request as node has it. Its headers are parsed already; Hono's own Headers object would cost more than the work
 * of a hot route.
 */
export const incomingOf = (c: Http): IncomingMessage => (c.env as { incoming: IncomingMessage }).incoming;

export function headerOf(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

/** Whether `Accept` names the media type. */
export const prefers = (c: Http, type: string): boolean =>
  (headerOf(incomingOf(c).headers, "accept") ?? "").split(",").some((part) => part.trim().startsWith(type));

/** `Prefer: wait=10`, in ms; 30 s at most. */
export function waitMsOf(asked: IncomingHttpHeaders): number {
  const seconds = /(?:^|[,;\s])wait=(\d{1,6})(?:[,;\s]|$)/.exec(headerOf(asked, "prefer") ?? "")?.[1];
  return seconds === undefined ? 0 : Math.min(Number(seconds), WAIT_S_MAX) * 1000;
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem("INVALID_JSON");
  }
}

/** The text of a JSON body, read now and within the limit. */
export async function bodyText({
  headers,
  text,
}: {
  headers: IncomingHttpHeaders;
  text(): Promise<string>;
}): Promise<string> {
  const type = headers["content-type"];
  if (!type || !/^application\/json(\s*;|$)/i.test(type)) throw new Problem("UNSUPPORTED_MEDIA_TYPE");
  return text();
}

const tooLarge = (max: number) => new Problem("BODY_TOO_LARGE", `the limit is ${max} bytes`);

/** Reads the body. With a Content-Length the server reads no more than that; without one it is counted here. */
export function textOf(incoming: IncomingMessage, max: number): Promise<string> {
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
