/** A TCP link that can be cut, silenced, or made to lose replies: between the service and a real server. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface Link {
  port: number;
  /** Requests go through and are carried out; from the next reply on, replies are lost and the link is reset. */
  loseReplies(on: boolean): void;
  /** Nothing goes either way, and nobody is told. */
  blackHole(on: boolean): void;
  /** Resets every open link. */
  cut(): void;
  /** Leads new links to another server, and resets the open ones. */
  retarget(port: number): void;
  /** How many replies were lost. */
  lost(): number;
  close(): Promise<void>;
}

export async function startProxy(targetPort: number): Promise<Link> {
  const links = new Set<[Socket, Socket]>();
  let losing = false;
  let silent = false;
  let lost = 0;
  let to = targetPort;
  const server = createServer((client) => {
    const target = connect(to, "127.0.0.1");
    const link: [Socket, Socket] = [client, target];
    links.add(link);
    client.on("data", (chunk) => !silent && target.write(chunk));
    target.on("data", (chunk) => {
      if (silent) return;
      if (!losing) return void client.write(chunk);
      lost++;
      client.resetAndDestroy();
      target.destroy();
    });
    for (const [a, b] of [link, [target, client]] as const) {
      a.on("error", () => {});
      a.on("close", () => {
        b.destroy();
        links.delete(link);
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    for (const [client, target] of links) {
      client.resetAndDestroy();
      target.destroy();
    }
  };
  return {
    port: (server.address() as AddressInfo).port,
    loseReplies: (on) => (losing = on),
    blackHole: (on) => (silent = on),
    cut,
    retarget(port) {
      to = port;
      cut();
    },
    lost: () => lost,
    close: () =>
      new Promise((resolve) => {
        cut();
        server.close(() => resolve());
      }),
  };
}
