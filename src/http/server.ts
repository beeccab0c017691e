/** The HTTP server: limits on everything a client can hold open, and a drain that lets go of idle ones. */

import { createServer, type RequestListener, type Server, type ServerOptions } from "node:http";
import type { AddressInfo } from "node:net";
import { serve } from "@hono/node-server";
import type { Service } from "../compose.ts";

const DRAIN_MS_MAX = 15_000;

/** Resolves when it listens; `close` drains. */
export async function listen(
  service: Service,
  port: number,
  host: string,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = await new Promise<Server>((resolve, reject) => {
    const s = serve(
      {
        fetch: service.app.fetch,
        port,
        hostname: host,
        // The routes of the rush are answered before a web Request is made of them; Hono has all others.
        createServer: ((options: ServerOptions, hono: RequestListener) =>
          createServer(
            options,
            (incoming, outgoing) => void (service.fastPath(incoming, outgoing) || hono(incoming, outgoing)),
          )) as typeof createServer,
        serverOptions: {
          // A slow client is let go after this; without the interval the limits act only every 30 s (docs/measurements.md#nodes-http-limits).
          headersTimeout: 5_000,
          requestTimeout: 10_000,
          connectionsCheckingInterval: 500,
          keepAliveTimeout: 10_000,
          maxHeaderSize: 8_192,
        },
      },
      () => resolve(s as Server),
    ) as Server;
    s.maxConnections = 20_000;
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
