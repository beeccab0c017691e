/** The command line: `fukubukuro --help`. */

import { readFileSync } from "node:fs";
import { Command, InvalidArgumentError } from "commander";
import { isApiProcess, shareMetrics, startApiProcesses } from "./commands/api-processes.ts";
import { rehearse, verdictOf } from "./commands/rehearse.ts";
import { compose, type Service } from "./compose.ts";
import { type Config, readConfig, told } from "./config.ts";
import { ConfigError, StartError } from "./domain/errors.ts";
import type { Sale } from "./domain/sale.ts";
import { CUSTOMER_ID, signShopperToken } from "./http/auth.ts";
import { check, saleBody } from "./http/contract.ts";
import { Problem } from "./http/problem.ts";
import { createSale } from "./http/sale-changes.ts";
import { listen } from "./http/server.ts";
import { readMailbox } from "./local/mailbox.ts";
import { attach, needsLocal, startLocal, withSecrets } from "./local/stack.ts";
import { makeLog } from "./log.ts";
import { version } from "./places.ts";
import { auditSale } from "./recover/audit.ts";
import { rebuildSale } from "./recover/rebuild.ts";
import { reconcileOnce } from "./recover/reconcile.ts";
import { recover, tellRecovery } from "./recover/recover.ts";

const DAY_MS = 86_400_000;
const DEMO_SALE = "demo";

/** Where a person reads the output, only what needs attention. */
const logOf = (config: Config, quiet: boolean) => makeLog(config.logLevel ?? (quiet ? "warn" : "info"));

/** `10m`, `7d`, `90s` -> ms */
function duration(text: string): number {
  const m = /^(\d+)([smhd])$/.exec(text);
  if (!m) throw new InvalidArgumentError("use for example 90s, 10m, 12h or 7d");
  return Number(m[1]) * { s: 1_000, m: 60_000, h: 3_600_000, d: DAY_MS }[m[2] as "s" | "m" | "h" | "d"];
}

async function demoSale(service: Service): Promise<void> {
  if ((await service.ctx.sales.all()).length > 0) return;
  const now = Date.now();
  const item = (sku: string, name: string, unitPrice: number, stock: number) => ({ sku, name, unitPrice, stock });
  await createSale(service.ctx, {
    id: DEMO_SALE,
    name: "福袋 Demo Sale",
    currency: "JPY",
    holdMs: 600_000,
    maxUnitsPerCustomer: 2,
    shippingFee: 800,
    opensAt: new Date(now).toISOString(),
    closesAt: new Date(now + 365 * DAY_MS).toISOString(),
    shop: {
      name: { ja: "福袋デモ商店", en: "Lucky Bag Demo Shop" },
      address: { ja: "東京都千代田区千代田 1-1", en: "1-1 Chiyoda, Chiyoda-ku, Tokyo" },
      phone: "03-0000-0000",
      email: "shop@fukubukuro.example",
      invoiceNumber: "T1234567890123",
    },
    terms: {
      delivery: {
        ja: "ご注文の確定後、7 日以内に発送します。",
        en: "Shipped within 7 days after the order is placed.",
      },
      cancellation: {
        ja: "福袋の性質上、お客様のご都合による返品・交換はお受けできません。不良品は到着後 7 日以内にご連絡ください。送料当店負担で交換または返金いたします。",
        en: "Lucky bags cannot be returned or exchanged for a change of mind. If something is broken, tell us within 7 days of arrival: we exchange or refund it at our cost.",
      },
    },
    items: [
      item("bag-s", "福袋 小 Lucky bag S", 3_000, 50),
      item("bag-m", "福袋 中 Lucky bag M", 10_000, 100),
      item("bag-l", "福袋 大 Lucky bag L", 30_000, 10),
      { ...item("bag-tea", "お茶の福袋 Tea bag", 2_160, 80), taxPercent: 8 },
    ],
  });
}

async function serve(): Promise<void> {
  const given = readConfig();
  if (isApiProcess()) return serveApi(given);
  const local = needsLocal(given);
  const log = logOf(given, local);
  const say = (line: string) => process.stdout.write(`${line}\n`);
  const began = Date.now();
  let stopAll: () => Promise<void> = async () => {};
  let stopping = false;
  const stop = (signal: string) => {
    if (stopping) process.exit(130);
    stopping = true;
    if (local) say(`\n${signal}: stopping (again to stop at once) ...`);
    stopAll().then(
      () => process.exit(0),
      (error) => {
        log.error({ err: error }, "stopping failed");
        process.exit(1);
      },
    );
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stop(signal));
  process.on("unhandledRejection", (error) => {
    // An unknown state of this process is ended; every state that matters is in the stores.
    log.fatal({ err: error }, "unhandled rejection");
    process.exit(1);
  });

  if (local) say("Starting everything on this machine:");
  const stack = local ? await startLocal(given, (line) => say(`  ${line}`)) : null;
  stopAll = async () => void (await stack?.stop());
  if (stopping) return;
  try {
    const config = stack?.config ?? given;
    if (local) say("  Service ...");
    const service = await compose(config, log, { mailbox: stack?.mailbox ?? null, alone: stack?.alone ?? false });
    stopAll = async () => {
      await service.close();
      await stack?.stop();
    };
    await service.makeWhole();
    service.start();
    if (local) await demoSale(service);
    const server =
      config.role === "worker"
        ? null
        : config.processes === 1
          ? await listen(service, config.port, config.host)
          : await startApiProcesses(config, service.ctx.metrics, log, stack?.mailbox?.folder);
    stopAll = async () => {
      await server?.close();
      await service.close();
      await stack?.stop();
    };
    if (stopping) return stopAll();
    const port = server && "port" in server ? server.port : config.port;
    const at = server && `http://${config.host.includes(":") ? `[${config.host}]` : config.host}:${port}`;
    if (!local) return log.info({ at, role: config.role, processes: config.processes }, "ready");
    say(
      [
        `\nReady in ${((Date.now() - began) / 1000).toFixed(1)} s.\n`,
        `  Shop          ${at}/`,
        `  Cockpit       ${at}/admin`,
        `  Mails         ${at}/mails`,
        `  API docs      ${at}/docs`,
        `  Gateway       ${config.sandboxGatewayUrl ?? "none"} (sandbox)`,
        `  Admin token   ${config.adminTokens?.[0]}`,
        `  A shopper     npm run --silent fukubukuro -- token --customer c1\n`,
        `Data is kept under ${given.dataDir}. Ctrl-C stops everything.`,
      ].join("\n"),
    );
  } catch (error) {
    await stopAll();
    throw error;
  }
}

/** One of several api processes: its parent has the stores, the loops and the terminal, and says when to stop. */
async function serveApi(config: Config): Promise<void> {
  const log = logOf(config, config.logLevel === undefined && told.mailsFolder !== undefined);
  const folder = told.mailsFolder;
  const service = await compose(config, log, {
    mailbox: folder === undefined ? null : readMailbox(folder),
    alone: false,
  });
  shareMetrics(service.ctx.metrics);
  // The port is shared: what this process cannot answer yet another one can. When Redis is away all say so.
  await service.ctx.redis.ready(5_000).catch(() => {});
  service.start();
  const server = await listen(service, config.port, config.host);
  process.on("SIGINT", () => {}); // Ctrl-C reaches the parent too, which drains
  process.once("SIGTERM", () => void server.close().finally(() => process.exit(0)));
  process.on("unhandledRejection", (error) => {
    log.fatal({ err: error }, "unhandled rejection");
    process.exit(1);
  });
}

/** For commands beside a running service: the stores it runs on, no loops, no HTTP. */
async function withService<T>(f: (service: Service) => Promise<T>): Promise<T> {
  const config = await attach(readConfig());
  const service = await compose(
    { ...config, role: "api", shopperTokenSecrets: config.shopperTokenSecrets ?? ["unused-by-this-command"] },
    logOf(config, true),
  );
  try {
    await service.ctx.redis.ready(5_000);
    return await f(service);
  } finally {
    await service.close();
  }
}

async function salesNamed(service: Service, id: string | undefined): Promise<Sale[]> {
  const all = await service.ctx.sales.all();
  const wanted = id === undefined ? all : all.filter((s) => s.id === id);
  if (wanted.length === 0)
    throw new ConfigError(id === undefined ? "There is no sale yet." : `There is no sale ${id}.`);
  return wanted;
}

const print = (value: unknown): void => void process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

const program = new Command("fukubukuro")
  .description("Inventory service for flash sales. Settings come from the environment: see docs/reference.md.")
  .version(version())
  .showHelpAfterError();

program
  .command("serve")
  .description("run the service; without REDIS_URL and DATABASE_URL everything it needs is started too")
  .action(serve);

program
  .command("token")
  .description("print a shopper's token for trying out")
  .requiredOption("--customer <id>", "the customer's id")
  .option("--expires <duration>", "how long it is valid: 90s, 10m, 12h, 7d", duration, DAY_MS)
  .action(async (o: { customer: string; expires: number }) => {
    if (!CUSTOMER_ID.test(o.customer)) throw new ConfigError("--customer must be 1-128 visible characters.");
    const given = readConfig();
    const config = given.shopperTokenSecrets || !needsLocal(given) ? given : await withSecrets(given);
    if (!config.shopperTokenSecrets) throw new ConfigError("SHOPPER_TOKEN_SECRET is not set.");
    process.stdout.write(`${signShopperToken(config.shopperTokenSecrets[0] as string, o.customer, o.expires)}\n`);
  });

program
  .command("audit")
  .description("print the books; exit code 1 when they do not balance")
  .option("--sale <id>", "one sale instead of all")
  .action((o: { sale?: string }) =>
    withService(async (service) => {
      const audits = [];
      for (const sale of await salesNamed(service, o.sale)) audits.push(await auditSale(service.ctx, sale.id, sale.no));
      print(audits);
      process.exitCode = audits.every((a) => a.ok) ? 0 : 1;
    }),
  );

program
  .command("reconcile")
  .description("finish what a crash or a lost answer left open, once; the service does so by itself")
  .action(() => withService(async (service) => print(await reconcileOnce(service.ctx, { walk: true }))));

program
  .command("rebuild")
  .description("make the sales in Redis whole from Postgres where they are not; the service does so by itself")
  .option("--sale <id>", "one sale instead of all")
  .option("--force", "also where they seem whole: when the audit shows a difference that stays")
  .action((o: { sale?: string; force?: boolean }) =>
    withService(async (service) => {
      for (const sale of await salesNamed(service, o.sale))
        print({ saleId: sale.id, ...(await rebuildSale(service.ctx, sale.id, { force: o.force === true })) });
    }),
  );

program
  .command("rehearse")
  .description(
    "before the sale: a small one on a stack of its own, with things killed before your eyes; ends with the certificate",
  )
  .action(async () => {
    const r = await rehearse((line) => process.stdout.write(`${line}\n`));
    process.stdout.write(`${verdictOf(r).join("\n")}\n`);
    process.exitCode = r.ok ? 0 : 1;
  });

program
  .command("recover")
  .description(
    "after Postgres was restored from an older copy: show what it does not know, and with --apply write it down",
  )
  .option("--sale <id>", "one sale instead of all")
  .option("--apply", "write it down, and let the sales go on when nothing is left open; without it nothing is changed")
  .option("--refund", "with --apply: refund the charges whose lines nothing tells, or whose units are gone")
  .option("--foreign <reference...>", "with --apply: charges that are none of ours")
  .option("--json", "print JSON")
  .action((o: { sale?: string; apply?: boolean; refund?: boolean; foreign?: string[]; json?: boolean }) =>
    withService(async (service) => {
      const sales = await salesNamed(service, o.sale);
      const found = await recover(service.ctx, sales, { ...o, all: o.sale === undefined });
      if (o.json) print(found);
      else process.stdout.write(`${(await tellRecovery(service.ctx, found)).join("\n")}\n`);
      process.exitCode = found.open > 0 || (found.stoppedWhy !== null && !found.resumed) ? 1 : 0;
    }),
  );

const sale = program.command("sale").description("manage sales");
sale
  .command("create")
  .description("create a sale from a JSON file shaped like the body of POST /v1/admin/sales")
  .argument("<file>", "the file, or - for standard input")
  .action((file: string) =>
    withService(async (service) => {
      let body: unknown;
      try {
        body = JSON.parse(readFileSync(file === "-" ? 0 : file, "utf8"));
      } catch (error) {
        throw new ConfigError(`${file} cannot be read as JSON: ${(error as Error).message}.`);
      }
      const made = await createSale(service.ctx, check(saleBody, body));
      print({ id: made.sale.id, created: made.created });
    }),
  );
sale
  .command("list")
  .description("list sales")
  .action(() =>
    withService(async (service) => print((await service.ctx.sales.all()).map(({ id, name }) => ({ id, name })))),
  );

try {
  await program.parseAsync();
} catch (error) {
  // A wrong setting or argument is one sentence; a fault of ours keeps its stack.
  const expected = error instanceof ConfigError || error instanceof Problem || error instanceof StartError;
  process.stderr.write(`${expected ? (error as Error).message : String((error as Error).stack ?? error)}\n`);
  process.exit(1);
}
