/** The command line: `fukubukuro --help`. */
import { readFileSync } from "node:fs";
import { Command, InvalidArgumentError } from "commander";
import { print, salesNamed, withService } from "./commands/beside.ts";
import { rehearse, verdictOf } from "./commands/rehearse.ts";
import { serve } from "./commands/serve.ts";
import { readConfig } from "./config.ts";
import { ConfigError, StartError } from "./domain/errors.ts";
import { CUSTOMER_ID, signShopperToken } from "./http/auth.ts";
import { check, saleBody } from "./http/contract.ts";
import { Problem } from "./http/problem.ts";
import { createSale } from "./http/sale-changes.ts";
import { needsLocal, withSecrets } from "./local/stack.ts";
import { version } from "./places.ts";
import { auditSale } from "./recover/audit.ts";
import { rebuildSale } from "./recover/rebuild.ts";
import { reconcileOnce } from "./recover/reconcile.ts";
import { recover, tellRecovery } from "./recover/recover.ts";

const DAY_MS = 86_400_000;

/** `10m`, `7d`, `90s` -> ms */
function duration(text: string): number {
  const m = /^(\d+)([smhd])$/.exec(text);
  if (!m) throw new InvalidArgumentError("use for example 90s, 10m, 12h or 7d");
  return Number(m[1]) * { s: 1_000, m: 60_000, h: 3_600_000, d: DAY_MS }[m[2] as "s" | "m" | "h" | "d"];
}

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
