import { Redis as Client, Cluster, type ClusterNode } from "ioredis";
import type { Logger } from "pino";

/** A store did not answer, or not in a state to be used. What was asked may or may not have been done. */
export class Unavailable extends Error {
  readonly retryAfterMs: number;
  constructor(message: string, retryAfterMs = 1000, options?: ErrorOptions) {
    super(message, options);
    this.retryAfterMs = retryAfterMs;
  }
}

const COMMAND_TIMEOUT_MS = 2_000;
const CONNECT_TIMEOUT_MS = 2_000;
const RECONNECT_MS_MAX = 500;

/**
 * A client that never sends anything twice and never queues for a link that is down: with the library's defaults a script
 * runs twice when a reply is lost (facts.md). Every error means "unknown"; callers repeat with the same id.
 */
const SAFE = {
  maxRetriesPerRequest: 0,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  commandTimeout: COMMAND_TIMEOUT_MS,
  connectTimeout: CONNECT_TIMEOUT_MS,
  retryStrategy: (times: number) => Math.min(25 * times, RECONNECT_MS_MAX),
  lazyConnect: true,
} as const;

export type Instance = { runId: string; replicationId: string };

export interface Redis {
  client: Client | Cluster;
  /** The Redis behind the present connection, or null while it is not connected or not yet asked (rule G). */
  instance(): Instance | null;
  /** Resolves when an instance is known; rejects with Unavailable after the time. */
  ready(timeoutMs: number): Promise<Instance>;
  close(): Promise<void>;
}

function parseInstance(info: string): Instance {
  const field = (name: string) => new RegExp(`^${name}:(.*)$`, "m").exec(info)?.[1]?.trim() ?? "";
  return { runId: field("run_id"), replicationId: field("master_replid") };
}

export function makeClient(urls: string[]): Client | Cluster {
  const first = urls[0] as string;
  if (urls.length === 1) return first.startsWith("unix:") ? new Client({ ...SAFE, path: new URL(first).pathname }) : new Client(first, SAFE);
  const nodes: ClusterNode[] = urls.map((u) => ({ host: new URL(u).hostname, port: Number(new URL(u).port || 6379) }));
  return new Cluster(nodes, { redisOptions: SAFE, enableOfflineQueue: false, lazyConnect: true });
}

/**
 * Connects, and asks each new connection which instance it reached before anyone may use it.
 * In a cluster the instances of all nodes are taken together: a change of any is a new epoch for every sale.
 */
export function connectRedis(urls: string[], log: Logger): Redis {
  const client = makeClient(urls);
  let instance: Instance | null = null;
  let waiting: Array<(i: Instance) => void> = [];

  const ask = async () => {
    const infos =
      client instanceof Cluster
        ? await Promise.all(client.nodes("master").map(async (n) => `${await n.info("server")}\n${await n.info("replication")}`))
        : [`${await client.info("server")}\n${await client.info("replication")}`];
    const all = infos.map(parseInstance).sort((a, b) => a.runId.localeCompare(b.runId));
    return { runId: all.map((i) => i.runId).join("+"), replicationId: all.map((i) => i.replicationId).join("+") };
  };
  const onReady = () => {
    instance = null;
    ask().then(
      (found) => {
        if (client.status !== "ready") return;
        instance = found;
        log.debug({ instance }, "redis connected");
        for (const resolve of waiting.splice(0)) resolve(found);
      },
      (error) => {
        log.warn({ err: error }, "redis did not say which instance it is; connecting again");
        client.disconnect(true);
      },
    );
  };
  client.on("ready", onReady);
  for (const event of ["close", "reconnecting", "end"]) client.on(event, () => (instance = null));
  client.on("error", (error: Error) => log.debug({ err: error }, "redis connection"));
  client.connect().catch(() => {}); // retryStrategy goes on by itself

  return {
    client,
    instance: () => instance,
    ready(timeoutMs) {
      if (instance) return Promise.resolve(instance);
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          waiting = waiting.filter((w) => w !== done);
          reject(new Unavailable("Redis does not answer"));
        }, timeoutMs);
        const done = (i: Instance) => {
          clearTimeout(timer);
          resolve(i);
        };
        waiting.push(done);
      });
    },
    async close() {
      await client.quit().catch(() => client.disconnect());
    },
  };
}
