/** The sales as this process knows them, and the one way to call a sale's transitions. */
import { eq } from "drizzle-orm";
import type { Logger } from "pino";
import { ArrivedLate, StaleEpoch, Unavailable } from "../domain/errors.ts";
import type { SaleClock } from "../domain/hold.ts";
import type { Sale } from "../domain/sale.ts";
import type { Db } from "./postgres.ts";
import type { Redis } from "./redis.ts";
import { epochs, items, journalPositions, sales } from "./schema.ts";
import type { Stamp } from "./scripts.ts";

/**
 * A call that reaches Redis later than this after it was made is refused there: bytes that were delayed on the way must
 * not act (docs/measurements.md#lost-replies).
 */
const ARRIVE_WITHIN_MS = 3_000;
const UNKNOWN_SALE_MS = 1_000;
const UNKNOWN_SALES_MAX = 10_000;
/** Told to wait: a person has to look first. */
const STOPPED_MS = 10_000;

type SaleKey = { id: string } | { no: number };

/** What a shopper is told; operators find the reason in /readyz, the cockpit and the audit. */
function assertSelling(sale: Sale): void {
  if (sale.stoppedWhy !== null)
    throw new Unavailable(
      "This sale stands still while the shop checks its books; nothing is sold or charged meanwhile",
      STOPPED_MS,
    );
}

/** Reads a sale's rows into `sale`, the object that everyone in this process has in hand; null when there is none. */
async function readSale(db: Db, where: SaleKey, known: (id: string) => Sale | undefined): Promise<Sale | null> {
  const [row] = await db
    .select()
    .from(sales)
    .innerJoin(epochs, eq(epochs.saleId, sales.id))
    .innerJoin(journalPositions, eq(journalPositions.saleId, sales.id))
    .where("id" in where ? eq(sales.id, where.id) : eq(sales.no, where.no));
  if (!row) return null;
  const itemRows = await db.select().from(items).where(eq(items.saleId, row.sales.id)).orderBy(items.position);
  const s = row.sales;
  const sale = known(s.id) ?? ({ seqSeen: 0, clockAheadMs: 0, clockReadAt: 0, epoch: -1 } as Sale);
  // Another epoch may be another Redis, with a clock of its own.
  if (sale.epoch !== row.epochs.epoch) Object.assign(sale, { seqSeen: 0, clockAheadMs: 0 });
  return Object.assign(sale, {
    id: s.id,
    no: s.no,
    name: s.name,
    currency: s.currency,
    language: s.language,
    holdMs: s.holdMs,
    gateways: s.gateways,
    opensAtMs: s.opensAt.getTime(),
    closesAtMs: s.closesAt.getTime(),
    shippingFee: s.shippingFee,
    version: s.version,
    details: s.details,
    maxUnitsPerCustomer: s.maxUnitsPerCustomer,
    reserving: s.reserving,
    pausedAtMs: s.pausedAtMs,
    shiftMs: s.shiftMs,
    items: new Map(
      itemRows.map((r) => [
        r.sku,
        { sku: r.sku, name: r.name, unitPrice: r.unitPrice, taxPercent: r.taxPercent ?? s.details.taxPercent },
      ]),
    ),
    carts: new Map(),
    epoch: row.epochs.epoch,
    runId: row.epochs.runId,
    replicationId: row.epochs.replicationId,
    stoppedWhy: row.epochs.stoppedWhy,
    seqSeen: Math.max(sale.seqSeen, row.journal_positions.seq),
  } satisfies Partial<Sale>);
}

export class Sales {
  readonly #db: Db;
  readonly #redis: Redis;
  readonly #log: Logger;
  readonly #byId = new Map<string, Sale>();
  readonly #byNo = new Map<number, Sale>();
  readonly #unknownUntil = new Map<string | number, number>();
  readonly #loading = new Map<string | number, Promise<Sale | null>>();
  #repair: (saleId: string, why: string) => Promise<void> = async () => {};

  constructor(db: Db, redis: Redis, log: Logger) {
    this.#db = db;
    this.#redis = redis;
    this.#log = log;
  }

  /** The sale by id, from memory where it is known. */
  get(id: string): Promise<Sale | null> | Sale {
    return this.#byId.get(id) ?? this.#find(id);
  }
  getByNo(no: number): Promise<Sale | null> | Sale {
    return this.#byNo.get(no) ?? this.#find(no);
  }
  /** Reads settings and epoch again. */
  refresh(id: string): Promise<Sale | null> {
    return this.#find(id);
  }
  forgetUnknown(id: string): void {
    this.#unknownUntil.delete(id);
  }
  /** A sale this process knows already. */
  known(id: string): Sale | undefined {
    return this.#byId.get(id);
  }
  allKnown(): Sale[] {
    return [...this.#byId.values()];
  }
  async all(): Promise<Sale[]> {
    const ids = await this.#db.select({ id: sales.id }).from(sales).orderBy(sales.no);
    const found = await Promise.all(ids.map(({ id }) => this.get(id)));
    return found.filter((s) => s !== null);
  }

  /** What to do when a sale's Redis is found missing, older, rolled back or broken. Set once by compose. */
  onStale(repair: (saleId: string, why: string) => Promise<void>): void {
    this.#repair = repair;
  }

  /** What a call to the sale's transitions must agree with. */
  stamp(sale: Sale): Stamp {
    return {
      saleId: sale.id,
      epoch: sale.epoch,
      seqMin: sale.seqSeen,
      notAfterMs: sale.clockAheadMs === 0 ? 0 : Date.now() + sale.clockAheadMs + ARRIVE_WITHIN_MS,
    };
  }

  /** Rule G: the Redis we are connected to is the one that Postgres names for this sale. */
  isRecorded(sale: Sale): boolean {
    const here = this.#redis.instance();
    if (!here) throw new Unavailable("Redis is away");
    return sale.epoch > 0 && here.runId === sale.runId && here.replicationId === sale.replicationId;
  }

  /**
   * Calls a transition under the sale's epoch. On STALE_EPOCH the epoch is read again from Postgres; a newer one is
   * tried once, else the sale is handed to rebuild and Unavailable is thrown: nothing was granted.
   */
  async call<T extends SaleClock>(sale: Sale, call: (s: Stamp) => Promise<T>): Promise<T> {
    assertSelling(sale);
    try {
      return await this.#once(sale, call);
    } catch (error) {
      if (!(error instanceof StaleEpoch)) throw error;
      const before = sale.epoch;
      await this.#find(sale.id);
      assertSelling(sale);
      if (sale.epoch !== before && this.isRecorded(sale)) {
        try {
          return await this.#once(sale, call);
        } catch (again) {
          if (!(again instanceof StaleEpoch)) throw again;
        }
      }
      this.#repair(sale.id, error.message).catch((e) => this.#log.error({ err: e, saleId: sale.id }, "rebuild failed"));
      throw new Unavailable("The sale is being rebuilt", 2000);
    }
  }

  async #once<T extends SaleClock>(sale: Sale, call: (s: Stamp) => Promise<T>): Promise<T> {
    if (!this.isRecorded(sale)) throw new StaleEpoch("", "another Redis instance");
    const [epoch, sentAt] = [sale.epoch, Date.now()];
    const answer = await call(this.stamp(sale)).catch((error) => {
      if (!(error instanceof ArrivedLate)) throw error;
      // Nothing was done. If Redis' clock went forward it is known now; if the call itself was slow, the caller still
      // waits.
      if (sale.epoch === epoch) this.#learnClock(sale, error.nowMs, sentAt);
      return call(this.stamp(sale));
    });
    if (sale.epoch === epoch) {
      if (answer.seq > sale.seqSeen) sale.seqSeen = answer.seq;
      this.#learnClock(sale, answer.nowMs, sentAt);
    }
    return answer;
  }

  /** Measured from before the call was sent, so never too small; +1 keeps it apart from "not known". */
  #learnClock(sale: Sale, redisNowMs: number, sentAt: number): void {
    sale.clockAheadMs = redisNowMs - sentAt + 1;
    sale.clockReadAt = performance.now();
  }

  /** Loads once however many ask; an unknown id is not asked for again within a second. */
  async #find(key: string | number): Promise<Sale | null> {
    const until = this.#unknownUntil.get(key);
    if (until !== undefined && until > Date.now()) return null;
    let promise = this.#loading.get(key);
    if (!promise) {
      promise = this.#load(typeof key === "number" ? { no: key } : { id: key }).finally(() =>
        this.#loading.delete(key),
      );
      this.#loading.set(key, promise);
    }
    const sale = await promise.catch((error) => {
      throw new Unavailable("Postgres does not answer", 1000, { cause: error });
    });
    if (!sale) this.#rememberUnknown(key);
    else this.#unknownUntil.delete(key);
    return sale;
  }

  /** What is over goes first, and the oldest of too many: names that outsiders make up must not grow into anything. */
  #rememberUnknown(key: string | number): void {
    const now = Date.now();
    this.#unknownUntil.delete(key);
    for (const [oldest, until] of this.#unknownUntil) {
      if (until > now && this.#unknownUntil.size < UNKNOWN_SALES_MAX) break;
      this.#unknownUntil.delete(oldest);
    }
    this.#unknownUntil.set(key, now + UNKNOWN_SALE_MS);
  }

  async #load(where: SaleKey): Promise<Sale | null> {
    const sale = await readSale(this.#db, where, (id) => this.#byId.get(id));
    if (!sale) return null;
    this.#byId.set(sale.id, sale);
    this.#byNo.set(sale.no, sale);
    return sale;
  }
}
