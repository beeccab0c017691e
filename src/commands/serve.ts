/** `fukubukuro serve`: a node of production over stores that are named, or everything on this machine where none is. */
import type { Logger } from "pino";
import { compose, type Service } from "../compose.ts";
import { type Config, readConfig, told } from "../config.ts";
import { listen } from "../http/server.ts";
import { readMailbox } from "../local/mailbox.ts";
import { type Local, needsLocal, startLocal } from "../local/stack.ts";
import { isApiProcess, shareMetrics, startApiProcesses } from "./api-processes.ts";
import { logOf } from "./beside.ts";
import { demoSale } from "./demo-sale.ts";

const say = (line: string) => process.stdout.write(`${line}\n`);

/** What has been started so far, in the order in which it is stopped. */
interface Started {
  stopping: boolean;
  stop(): Promise<void>;
}

/** A signal stops what has been started; a second one ends the process at once. */
function stopOnSignals(started: Started, local: boolean, log: Logger): void {
  const onSignal = (signal: string) => {
    if (started.stopping) process.exit(130);
    started.stopping = true;
    if (local) say(`\n${signal}: stopping (again to stop at once) ...`);
    started.stop().then(
      () => process.exit(0),
      (error) => {
        log.error({ err: error }, "stopping failed");
        process.exit(1);
      },
    );
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => onSignal(signal));
}

/** An unknown state of this process is ended; every state that matters is in the stores. */
function endOnUnhandled(log: Logger): void {
  process.on("unhandledRejection", (error) => {
    log.fatal({ err: error }, "unhandled rejection");
    process.exit(1);
  });
}

export async function serve(): Promise<void> {
  const given = readConfig();
  if (isApiProcess()) return serveApi(given);
  const local = needsLocal(given);
  const log = logOf(given, local);
  const began = Date.now();
  const started: Started = { stopping: false, stop: async () => {} };
  stopOnSignals(started, local, log);
  endOnUnhandled(log);

  if (local) say("Starting everything on this machine:");
  const stack = local ? await startLocal(given, (line) => say(`  ${line}`)) : null;
  started.stop = async () => void (await stack?.stop());
  if (started.stopping) return;
  try {
    const config = stack?.config ?? given;
    const at = await startService(config, stack, log, started);
    if (started.stopping) return await started.stop();
    if (local) tellLocal(config, at, given.dataDir, Date.now() - began);
    else log.info({ at, role: config.role, processes: config.processes }, "ready");
  } catch (error) {
    await started.stop();
    throw error;
  }
}

/** Answers where it listens; null for a worker. */
async function startService(
  config: Config,
  stack: Local | null,
  log: Logger,
  started: Started,
): Promise<string | null> {
  if (stack) say("  Service ...");
  const service = await compose(config, log, { mailbox: stack?.mailbox ?? null, alone: stack?.alone ?? false });
  started.stop = async () => {
    await service.close();
    await stack?.stop();
  };
  await service.makeWhole();
  service.start();
  if (stack) await demoSale(service);
  const server = await startServer(service, config, stack, log);
  started.stop = async () => {
    await server?.close();
    await service.close();
    await stack?.stop();
  };
  const port = server && "port" in server ? server.port : config.port;
  return server && `http://${config.host.includes(":") ? `[${config.host}]` : config.host}:${port}`;
}

function startServer(service: Service, config: Config, stack: Local | null, log: Logger) {
  if (config.role === "worker") return null;
  if (config.processes === 1) return listen(service, config.port, config.host);
  return startApiProcesses(config, service.ctx.metrics, log, stack?.mailbox?.folder);
}

function tellLocal(config: Config, at: string | null, dataDir: string, tookMs: number): void {
  say(
    [
      `\nReady in ${(tookMs / 1000).toFixed(1)} s.\n`,
      `  Shop          ${at}/`,
      `  Cockpit       ${at}/admin`,
      `  Mails         ${at}/mails`,
      `  API docs      ${at}/docs`,
      `  Gateway       ${config.sandboxGatewayUrl ?? "none"} (sandbox)`,
      `  Admin token   ${config.adminTokens?.[0]}`,
      `  A shopper     npm run --silent fukubukuro -- token --customer c1\n`,
      `Data is kept under ${dataDir}. Ctrl-C stops everything.`,
    ].join("\n"),
  );
}

/** One of several api processes: its parent has the stores, the loops and the terminal, and says when to stop. */
async function serveApi(config: Config): Promise<void> {
  const folder = told.mailsFolder;
  const log = logOf(config, config.logLevel === undefined && folder !== undefined);
  const mailbox = folder === undefined ? null : readMailbox(folder);
  const service = await compose(config, log, { mailbox, alone: false });
  shareMetrics(service.ctx.metrics);
  // The port is shared: what this process cannot answer yet another one can. When Redis is away all say so.
  await service.ctx.redis.ready(5_000).catch(() => {});
  service.start();
  const server = await listen(service, config.port, config.host);
  process.on("SIGINT", () => {}); // Ctrl-C reaches the parent too, which drains
  process.once("SIGTERM", () => void server.close().finally(() => process.exit(0)));
  endOnUnhandled(log);
}
