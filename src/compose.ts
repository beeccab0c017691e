/** The only place that makes clients. Returns the app, its workers, and how to close what was made. */

import { hash } from "node:crypto";
import { EventEmitter, setMaxListeners } from "node:events";
import { and, eq } from "drizzle-orm";
import { nanoid } from "nanoid";
import type { Logger } from "pino";
import { type App, makeApp } from "./app.ts";
import type { Config } from "./config.ts";
import type { Context } from "./context.ts";
import { ConfigError } from "./domain/errors.ts";
import { makeIds } from "./domain/ids.ts";
import type { MailReader } from "./domain/order.ts";
import { codGateway } from "./gateways/cod.ts";
import { type Gate, makeGate } from "./gateways/gate.ts";
import type { Gateway } from "./gateways/port.ts";
import { sandboxGateway } from "./gateways/sandbox.ts";
import { makeMetrics } from "./metrics.ts";
import { type Mailer, smtpMailer } from "./notify/mail.ts";
import { MAIL_CONNECTIONS_MAX } from "./notify/outbox.ts";
import { makeBatchedReads } from "./payments/batched-reads.ts";
import { rebuilder } from "./recover/rebuild.ts";
import { connectChangeHints } from "./stores/change-hints.ts";
import { makeMarks } from "./stores/marks.ts";
import { connectPostgres, type Db, migrate } from "./stores/postgres.ts";
import { assertSafe, unsafePostgres } from "./stores/preflight.ts";
import { connectRedis } from "./stores/redis.ts";
import { Sales } from "./stores/sales.ts";
import { gates as gateTable, secrets } from "./stores/schema.ts";
import { makeScripts } from "./stores/scripts.ts";
import { connectionCheck } from "./stores/stop-selling.ts";
import { runWorkers, watchSales } from "./workers.ts";

export interface Service extends App {
  ctx: Context;
  /** Rebuilds every sale that is not complete in Redis; when a store is away the loops do it later. */
  makeWhole(): Promise<void>;
  /** Begins the loops of this role. */
  start(): void;
  /** Not ready any more, waiting answers end, loops take no new work. What is under way goes on. */
  drain(): void;
  /** Drains, lets what runs come to rest, closes every client. Safe twice. */
  close(): Promise<void>;
}

/** A secret that all instances share: the first to write it wins. */
async function sharedSecret(db: Db, name: string): Promise<string> {
  await db
    .insert(secrets)
    .values({ name, value: nanoid(43) })
    .onConflictDoNothing();
  const [row] = await db.select().from(secrets).where(eq(secrets.name, name));
  return (row as { value: string }).value;
}

function makeGateways(config: Config): Map<string, Gateway> {
  const made = config.gateways.map((name): Gateway => {
    if (name === "cod") return codGateway;
    if (!config.sandboxGatewayUrl)
      throw new ConfigError("SANDBOX_GATEWAY_URL is not set, and GATEWAYS names sandbox: set it, or take sandbox out.");
    return sandboxGateway(config.sandboxGatewayUrl, config.gatewayTimeoutMs);
  });
  return new Map(made.map((g) => [g.name, g]));
}

/**
 * Whether no call of ours can be running at the gateway: it was never used, or everything was stopped in good order.
 */
async function isFresh(db: Db, gateway: string): Promise<boolean> {
  if ((await db.insert(gateTable).values({ gateway }).onConflictDoNothing().returning()).length > 0) return true;
  const at = and(eq(gateTable.gateway, gateway), eq(gateTable.quiet, true));
  return (await db.update(gateTable).set({ quiet: false }).where(at).returning()).length > 0;
}

/**
 * The last step of a stack that had a private Redis: a gate without permits out may open at once at the next start
 * (rule F).
 */
async function markQuiet(ctx: Context): Promise<void> {
  for (const gateway of ctx.gates.keys()) {
    const { inFlight } = await ctx.scripts.gateView(gateway);
    if (inFlight === 0) await ctx.db.update(gateTable).set({ quiet: true }).where(eq(gateTable.gateway, gateway));
  }
}

async function makeGates(
  config: Config,
  db: Db,
  gateways: Map<string, Gateway>,
  scripts: Context["scripts"],
): Promise<Map<string, Gate>> {
  const made = new Map<string, Gate>();
  for (const g of gateways.values()) {
    const fresh = await isFresh(db, g.name);
    const { gatewayLeaseMs: leaseMs, gatewayTimeoutMs: timeoutMs, gatewayOverrunMs: overrunMs } = config;
    if (g.needsPermits)
      made.set(
        g.name,
        makeGate(scripts, {
          gateway: g.name,
          limit: config.gatewayInFlightMax(g.name),
          leaseMs,
          timeoutMs,
          overrunMs,
          fresh,
        }),
      );
  }
  return made;
}

export async function compose(
  config: Config,
  log: Logger,
  local: { mailbox: MailReader | null; alone: boolean } = { mailbox: null, alone: false },
): Promise<Service> {
  if (!config.redisUrls || !config.databaseUrl) throw new ConfigError("REDIS_URL and DATABASE_URL must both be set.");
  if (!config.shopperTokenSecrets) throw new ConfigError("SHOPPER_TOKEN_SECRET is not set: no shopper could be known.");
  const gateways = makeGateways(config);
  await migrate(config.databaseUrl);
  const beatSeen = { beat: 0 };
  const postgres = connectPostgres(config.databaseUrl, { check: connectionCheck(beatSeen) });
  await postgres
    .use(unsafePostgres)
    .then((found) => assertSafe(found, config.allowUnsafe, log))
    .catch(async (error) => {
      await postgres.close();
      throw error;
    });
  const redis = connectRedis(config.redisUrls, log, config.allowUnsafe);
  const drain = new AbortController();
  // Loops and parts of the process, a fixed number; no request ever listens to it.
  setMaxListeners(0, drain.signal);
  const changeHints = connectChangeHints(config.redisUrls, log, drain.signal);
  const { db } = postgres;
  const scripts = makeScripts(redis);
  const sales = new Sales(db, redis, log);
  const secret = await sharedSecret(db, "reservation-ids");
  const ids = makeIds(secret);
  // A copy has the secret of its original, and so its name.
  const marks = makeMarks(redis, hash("sha256", `marks ${secret}`).slice(0, 16), beatSeen);
  const gates = await makeGates(config, db, gateways, scripts);
  const work = new EventEmitter().setMaxListeners(0);
  const ctx: Context = {
    config,
    log,
    db,
    redis,
    scripts,
    sales,
    marks,
    ids,
    gateways,
    gates,
    changeHints,
    reads: makeBatchedReads(db, scripts),
    metrics: makeMetrics(),
    work,
    mailbox: local.mailbox,
    draining: drain.signal,
  };
  const rebuild = rebuilder(ctx);
  sales.onStale(async (saleId, why) => {
    log.info({ saleId, why }, "the sale in Redis is not the one Postgres knows; rebuilding");
    await rebuild(saleId);
  });
  const mailer: Mailer | null = config.smtpUrl
    ? smtpMailer(config.smtpUrl, config.mailFrom, MAIL_CONNECTIONS_MAX)
    : null;
  if (!mailer && config.role !== "api") log.warn("SMTP_URL is not set: mails wait in the outbox");

  const { app, specs, fastPath } = makeApp(ctx);
  const loops: Array<Promise<unknown>> = [];
  let closing: Promise<void> | undefined;
  return {
    ctx,
    app,
    specs,
    fastPath,
    async makeWhole() {
      try {
        await redis.ready(10_000);
        for (const sale of await sales.all()) await rebuild(sale.id);
      } catch (error) {
        const refusal = redis.refusal();
        if (refusal) throw new ConfigError(refusal);
        log.error({ err: error }, "not every sale could be made whole yet; it is tried again");
      }
    },
    start() {
      loops.push(watchSales(ctx, drain.signal));
      if (config.role !== "api") loops.push(runWorkers(ctx, mailer, drain.signal));
    },
    drain: () => drain.abort(),
    close() {
      closing ??= (async () => {
        drain.abort();
        await Promise.allSettled(loops);
        if (local.alone)
          await markQuiet(ctx).catch((error) => log.debug({ err: error }, "the gates wait one lease next time"));
        mailer?.close();
        changeHints.close();
        await redis.close();
        await postgres.close();
      })();
      return closing;
    },
  };
}
