/** What the commands beside a running service share: the stores it runs on, and how they print. */
import { compose, type Service } from "../compose.ts";
import { type Config, readConfig } from "../config.ts";
import { ConfigError } from "../domain/errors.ts";
import type { Sale } from "../domain/sale.ts";
import { attach } from "../local/stack.ts";
import { makeLog } from "../log.ts";

/** Where a person reads the output, only what needs attention. */
export const logOf = (config: Config, quiet: boolean) => makeLog(config.logLevel ?? (quiet ? "warn" : "info"));

/** For commands beside a running service: the stores it runs on, no loops, no HTTP. */
export async function withService<T>(f: (service: Service) => Promise<T>): Promise<T> {
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

export async function salesNamed(service: Service, id: string | undefined): Promise<Sale[]> {
  const all = await service.ctx.sales.all();
  const wanted = id === undefined ? all : all.filter((s) => s.id === id);
  if (wanted.length === 0)
    throw new ConfigError(id === undefined ? "There is no sale yet." : `There is no sale ${id}.`);
  return wanted;
}

export const print = (value: unknown): void => void process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
