import type { EventEmitter } from "node:events";
import type { Logger } from "pino";
import type { Changes } from "./changes.ts";
import type { Config } from "./config.ts";
import type { Db } from "./db.ts";
import type { Gate } from "./gate.ts";
import type { Gateway } from "./gateways/port.ts";
import type { Ids } from "./ids.ts";
import type { MailReader } from "./local/mailbox.ts";
import type { Look } from "./look.ts";
import type { Marks } from "./marks.ts";
import type { Metrics } from "./metrics.ts";
import type { Redis } from "./redis.ts";
import type { Sales } from "./sales.ts";
import type { Scripts } from "./scripts.ts";

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
  changes: Changes;
  look: Look;
  metrics: Metrics;
  /** Hints inside this process that a worker has something to do: `line`, `outbox`. */
  work: EventEmitter;
  /** Where mails land in local mode; null when they go to a real server. */
  mailbox: MailReader | null;
  /** Aborts when the process drains. */
  draining: AbortSignal;
}
