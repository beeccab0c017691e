import type { EventEmitter } from "node:events";
import type { Logger } from "pino";
import type { Config } from "./config.ts";
import type { Ids } from "./domain/ids.ts";
import type { MailReader } from "./domain/order.ts";
import type { Gate } from "./gateways/gate.ts";
import type { Gateway } from "./gateways/port.ts";
import type { Metrics } from "./metrics.ts";
import type { BatchedReads } from "./payments/batched-reads.ts";
import type { ChangeHints } from "./stores/change-hints.ts";
import type { Marks } from "./stores/marks.ts";
import type { Db } from "./stores/postgres.ts";
import type { Redis } from "./stores/redis.ts";
import type { Sales } from "./stores/sales.ts";
import type { Scripts } from "./stores/scripts.ts";

/** What the stages use. Made once, in compose.ts. */
export interface Context {
  config: Config;
  log: Logger;
  db: Db;
  redis: Redis;
  scripts: Scripts;
  sales: Sales;
  marks: Marks;
  ids: Ids;
  gateways: Map<string, Gateway>;
  gates: Map<string, Gate>;
  changeHints: ChangeHints;
  reads: BatchedReads;
  metrics: Metrics;
  /** Hints inside this process that a worker has something to do: `line`, `outbox`. */
  work: EventEmitter;
  /** Where mails land in local mode; null when they go to a real server. */
  mailbox: MailReader | null;
  /** Aborts when the process drains. */
  draining: AbortSignal;
}
