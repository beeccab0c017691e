/** The HTTP server: limits on everything a client can hold open, and a drain that lets go of idle ones. */

import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerOptions,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import { serve } from "@hono/node-server";
import { nanoid } from "nanoid";

const DRAIN_MS_MAX = 15_000;

/** What is served. */
export interface Served {
  app: { fetch: Parameters<typeof serve>[0]["fetch"] };
  /** Answers a hot route on node's own request and response; false leaves a request to the app. */
  fastPath(incoming: IncomingMessage, outgoing: ServerResponse): boolean;
  drain(): void;
  close(): Promise<void>;
}

/** Resolves when it listens; `close` drains. */
export async function listen(
  service: Served,
  port: number,
  host: string,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = await new Promise<Server>((resolve, reject) => {
    const s = serve(
      {
        fetch: service.app.fetch,
        port,
        hostname: host,
        // Hot routes are answered before a web Request is made of them; Hono has all others.
        createServer: ((options: ServerOptions, hono: RequestListener) =>
          createServer(options, (incoming, outgoing) => {
            if (!isAddressed(incoming)) refuseUnaddressed(outgoing);
            else if (!service.fastPath(incoming, outgoing)) void hono(incoming, outgoing);
          })) as typeof createServer,
        serverOptions: {
          // A slow client is let go after this; without the interval the limits act only every 30 s
          // (docs/measurements.md#nodes-http-limits).
          headersTimeout: 5_000,
          requestTimeout: 10_000,
          connectionsCheckingInterval: 500,
          keepAliveTimeout: 10_000,
          maxHeaderSize: 8_192,
          // Refused here instead, with an id.
          requireHostHeader: false,
        },
      },
      () => resolve(s as Server),
    ) as Server;
    s.maxConnections = 20_000;
    s.on("clientError", refuseUnread);
    s.once("error", reject);
  });
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      // Answers say `Connection: close` from here on, waiting ones end, loops stop taking work.
      service.drain();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      const idle = setInterval(() => server.closeIdleConnections(), 50);
      const late = setTimeout(() => server.closeAllConnections(), DRAIN_MS_MAX);
      await closed;
      clearInterval(idle);
      clearTimeout(late);
      await service.close();
    },
  };
}

/** What node's parser refuses before it is a request: no route is known, so none of our codes fits. */
const UNREAD: Record<string, [status: number, title: string]> = {
  HPE_HEADER_OVERFLOW: [431, "Request Header Fields Too Large"],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: [413, "Payload Too Large"],
  ERR_HTTP_REQUEST_TIMEOUT: [408, "Request Timeout"],
};

/** Body and headers like those of every other refusal: a problem, and an id by which it can be asked after. */
function refusalOf(status: number, title: string): { body: string; headers: Record<string, string> } {
  const requestId = nanoid(12);
  const body = JSON.stringify({ type: "about:blank", title, status, requestId });
  const headers = {
    connection: "close",
    "content-type": "application/problem+json",
    "content-length": String(Buffer.byteLength(body)),
    "x-request-id": requestId,
    "x-content-type-options": "nosniff",
  };
  return { body, headers };
}

function refuseUnread(error: Error & { code?: string }, socket: Duplex): void {
  if (!socket.writable || error.code === "ECONNRESET") return void socket.destroy();
  const [status, title] = UNREAD[error.code ?? ""] ?? [400, "Bad Request"];
  const { body, headers } = refusalOf(status, title);
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${status} ${title}\r\n${lines.join("")}\r\n${body}`);
}

const HOST = /^([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?$/;
/** The last name of a host that was well formed: in a rush nearly every request names the same one. */
let wellFormedHost = "";
function isHost(name: string): boolean {
  if (name === wellFormedHost) return name !== "";
  if (!HOST.test(name)) return false;
  wellFormedHost = name;
  return true;
}
/** Whether an address can be made of it: a name of a host, and a path or a whole URL. */
const isAddressed = ({ headers, url = "" }: IncomingMessage): boolean =>
  isHost(headers.host ?? "") && (url.startsWith("/") || url === "*" || URL.canParse(url));

function refuseUnaddressed(outgoing: ServerResponse): void {
  const { body, headers } = refusalOf(400, "Bad Request");
  outgoing.writeHead(400, headers).end(body);
}
