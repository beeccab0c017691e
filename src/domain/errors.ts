/** Every expected fault that crosses a room. What a request is refused for is a Problem (http/problem.ts). */

/** A setting is wrong; the message is one sentence that names it. */
export class ConfigError extends Error {}

/** Something this machine needs could not be started; the message says what to do. */
export class StartError extends Error {}

/** A store did not answer, or is not in a state to be used. What was asked may or may not have been done. */
export class Unavailable extends Error {
  readonly retryAfterMs: number;
  constructor(message: string, retryAfterMs = 1000, options?: ErrorOptions) {
    super(message, options);
    this.retryAfterMs = retryAfterMs;
  }
}

/** A call reached Redis after its time and did nothing; the caller's idea of Redis' clock may be the cause. */
export class ArrivedLate extends Unavailable {
  /** Redis' clock when it arrived. */
  readonly nowMs: number;
  constructor(name: string, nowMs: number) {
    super(`${name} reached Redis too late`);
    this.nowMs = nowMs;
  }
}

/** Refused because too much is waiting; nothing was done. */
export class Overloaded extends Error {}

/** This Redis is of another epoch, behind what was seen, fenced, broken, or has no such sale. Nothing was done. */
export class StaleEpoch extends Error {
  readonly redisEpoch: string;
  constructor(redisEpoch: string, why = "stale epoch") {
    super(why);
    this.redisEpoch = redisEpoch;
  }
}

/** Redis is newer than Postgres: Postgres was restored from an older state. A person decides; nothing is touched. */
export class RedisNewer extends Unavailable {}

/** A Postgres that lacks what it is known to have had; nothing was written (recover/restored.ts). */
export class PostgresOlder extends Error {}

/** Fewer units are there than are to be claimed. */
export class NotEnough extends Error {}

/** A cart names an item that its sale does not have. */
export class NoSuchItem extends Error {
  readonly sku: string;
  constructor(sku: string) {
    super(`this sale has no item ${sku}`);
    this.sku = sku;
  }
}

/** Written by a newer version, which runs beside this one while it is rolled out: left for a process that knows it. */
export class NewerEntry extends Error {}

/**
 * A script stopped at what it was given, before it wrote anything: whoever was asked for together with it is not to
 * blame.
 */
export class ArgumentRefused extends Error {}

/** A request holds a value that a store can never keep. */
export class NotStorable extends Error {
  /** Where it is, as in a FieldError; "" when that is not known. */
  readonly path: string;
  constructor(path: string, why: string) {
    super(why);
    this.path = path;
  }
}
