import { Redis as Client, Cluster, type ClusterNode } from "ioredis";
import type { Logger } from "pino";
import { Unavailable } from "../domain/errors.ts";
import { refusalFor, unsafeRedis } from "./preflight.ts";

const COMMAND_TIMEOUT_MS = 2_000;
/**
 * Nothing heard for so long while something was asked: the link is given up. What timed out in it would stay in the
 * client's queue till then.
 */
const SILENT_MS = 3_000;
const CONNECT_TIMEOUT_MS = 2_000;
const RECONNECT_MS_MAX = 500;
const UNSAFE_AGAIN_MS = 2_000;

/**
 * A client that never sends anything twice and never queues for a link that is down: with the library's defaults a
 * script runs twice when a reply is lost (docs/measurements.md#lost-replies). Every error means "unknown"; callers
 * repeat with the same id.
 */
const SAFE = {
  maxRetriesPerRequest: 0,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  commandTimeout: COMMAND_TIMEOUT_MS,
  socketTimeout: SILENT_MS,
  connectTimeout: CONNECT_TIMEOUT_MS,
  retryStrategy: (times: number) => Math.min(25 * times, RECONNECT_MS_MAX),
  lazyConnect: true,
} as const;

export type Instance = { runId: string; replicationId: string };

export interface Redis {
  client: Client | Cluster;
  /** The Redis behind the present connection, or null while it is not connected or not yet asked (rule G). */
  instance(): Instance | null;
  /** Why nothing may be sold from the Redis we reach (preflight.ts), or null. */
  refusal(): string | null;
  /** Resolves when an instance is known; rejects with Unavailable after the time. */
  ready(timeoutMs: number): Promise<Instance>;
  close(): Promise<void>;
}

/** The settings that preflight.ts checks; null for a server that does not let them be read. */
function settingsOf(nodes: Client[]): Promise<Array<Record<string, string> | null>> {
  return Promise.all(
    nodes.map(async (n) => {
      const flat = await (n.config("GET", "append*") as Promise<string[]>).catch(() => null);
      const more = await (n.config("GET", "maxmemory*") as Promise<string[]>).catch(() => null);
      if (!flat || !more) return null;
      const all = [...flat, ...more];
      return Object.fromEntries(
        Array.from({ length: all.length / 2 }, (_, i) => [all[2 * i] as string, all[2 * i + 1] as string]),
      );
    }),
  );
}

function parseInstance(info: string): Instance {
  const field = (name: string) => new RegExp(`^${name}:(.*)$`, "m").exec(info)?.[1]?.trim() ?? "";
  return { runId: field("run_id"), replicationId: field("master_replid") };
}

export function makeClient(urls: string[]): Client | Cluster {
  const first = urls[0] as string;
  if (urls.length === 1)
    return first.startsWith("unix:") ? new Client({ ...SAFE, path: new URL(first).pathname }) : new Client(first, SAFE);
  const nodes: ClusterNode[] = urls.map((u) => ({ host: new URL(u).hostname, port: Number(new URL(u).port || 6379) }));
  return new Cluster(nodes, { redisOptions: SAFE, enableOfflineQueue: false, lazyConnect: true });
}

/**
 * Connects, and asks each new connection which instance it reached before anyone may use it.
 * In a cluster the instances of all nodes are taken together: a change of any is a new epoch for every sale.
 */
export function connectRedis(urls: string[], log: Logger, allowUnsafe: string[] = []): Redis {
  const client = makeClient(urls);
  let instance: Instance | null = null;
  let refusal: string | null = null;
  let waiting: Array<(i: Instance) => void> = [];

  const ask = async () => {
    const infos =
      client instanceof Cluster
        ? await Promise.all(
            client.nodes("master").map(async (n) => `${await n.info("server")}\n${await n.info("replication")}`),
          )
        : [`${await client.info("server")}\n${await client.info("replication")}`];
    const settings = await settingsOf(client instanceof Cluster ? client.nodes("master") : [client]);
    const unsafe = infos.flatMap((info, i) => unsafeRedis(info, settings[i] ?? null));
    const why = refusalFor(unsafe, allowUnsafe, log);
    if (why && why !== refusal) log.error(`Nothing is sold from this Redis: ${why}`);
    refusal = why;
    const all = infos.map(parseInstance).sort((a, b) => a.runId.localeCompare(b.runId));
    return { runId: all.map((i) => i.runId).join("+"), replicationId: all.map((i) => i.replicationId).join("+") };
  };
  const onReady = () => {
    instance = null;
    ask().then(
      (found) => {
        if (client.status !== "ready") return;
        if (refusal) {
          // Asked again: an operator may mend the setting, or a failover lead elsewhere.
          setTimeout(() => client.status === "ready" && onReady(), UNSAFE_AGAIN_MS).unref();
          return;
        }
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
    refusal: () => refusal,
    ready(timeoutMs) {
      if (instance) return Promise.resolve(instance);
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          waiting = waiting.filter((w) => w !== done);
          reject(new Unavailable(refusal ?? "Redis does not answer"));
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
