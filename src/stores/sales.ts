/** The sales as this process knows them, and the one way to call a sale's transitions. */
import { eq } from "drizzle-orm";
import type { Logger } from "pino";
import { Problem } from "../http/problem.ts";
import type { Db } from "./postgres.ts";
import { type Redis, Unavailable } from "./redis.ts";
import { epochs, items, journalPositions, type OrderLine, type SaleDetails, sales } from "./schema.ts";
import { type SaleClock, StaleEpoch, type Stamp } from "./scripts.ts";

export interface Item {
  sku: string;
  name: string;
  unitPrice: number;
  /** Whole percent, contained in the price. */
  taxPercent: number;
}

/** The lines of a reservation at the sale's prices: what its view, the payment's snapshot, the amount and the order are made of. */
export interface Cart {
  lines: OrderLine[];
  /** As the API shows them. */
  shown: Array<{ sku: string; quantity: number; unitPrice: number }>;
  /** Minor units, shipping fee and tax included. */
  amount: number;
}

export interface Sale {
  id: string;
  no: number;
  name: string;
  currency: string;
  language: string | null;
  opensAtMs: number;
  closesAtMs: number;
  holdMs: number;
  maxUnitsPerCustomer: number;
  gateways: string[];
  shippingFee: number;
  details: SaleDetails;
  reserving: boolean;
  pausedAtMs: number;
  shiftMs: number;
  version: number;
  items: Map<string, Item>;
  /** Carts that were read already, by their lines: in a rush most are alike. */
  carts: Map<string, Cart>;
  epoch: number;
  runId: string;
  replicationId: string;
  /** Highest sequence number seen in this epoch. */
  seqSeen: number;
  /** Redis clock less ours, ms, never too small. */
  clockAheadMs: number;
  /** When that was measured, by our monotonic clock. */
  clockReadAt: number;
}

/** A call that reaches Redis later than this after it was made is refused there: bytes that were delayed on the way must not act (docs/measurements.md#lost-replies). */
const ARRIVE_WITHIN_MS = 3_000;
const UNKNOWN_SALE_MS = 1_000;
const CARTS_MAX = 200;
/** So long after its end, and the last hold's, a sale is still looked after all the time: late payments arrive. */
const LOOKED_AFTER_MS = 3_600_000;

/** Long past: the loops visit it only now and then, or a shop of many years would pay for every sale it ever had. */
export const isOver = (s: Pick<Sale, "closesAtMs" | "holdMs">): boolean =>
  Date.now() > s.closesAtMs + s.holdMs + LOOKED_AFTER_MS;

export type Sales = ReturnType<typeof makeSales>;

export function makeSales(db: Db, redis: Redis, log: Logger) {
  const byId = new Map<string, Sale>();
  const byNo = new Map<number, Sale>();
  const unknownUntil = new Map<string | number, number>();
  const loading = new Map<string | number, Promise<Sale | null>>();
  let repair: (saleId: string, why: string) => Promise<void> = async () => {};

  async function load(where: { id: string } | { no: number }): Promise<Sale | null> {
    const at = "id" in where ? eq(sales.id, where.id) : eq(sales.no, where.no);
    const [row] = await db
      .select()
      .from(sales)
      .innerJoin(epochs, eq(epochs.saleId, sales.id))
      .innerJoin(journalPositions, eq(journalPositions.saleId, sales.id))
      .where(at);
    if (!row) return null;
    const rows = await db.select().from(items).where(eq(items.saleId, row.sales.id)).orderBy(items.position);
    const s = row.sales;
    const sale: Sale = byId.get(s.id) ?? ({ seqSeen: 0, clockAheadMs: 0, clockReadAt: 0, epoch: -1 } as Sale);
    if (sale.epoch !== row.epochs.epoch) sale.seqSeen = 0;
    Object.assign(sale, {
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
        rows.map((r) => [
          r.sku,
          { sku: r.sku, name: r.name, unitPrice: r.unitPrice, taxPercent: r.taxPercent ?? s.details.taxPercent },
        ]),
      ),
      carts: new Map(),
      epoch: row.epochs.epoch,
      runId: row.epochs.runId,
      replicationId: row.epochs.replicationId,
      seqSeen: Math.max(sale.seqSeen, row.journal_positions.seq),
    } satisfies Partial<Sale>);
    byId.set(s.id, sale);
    byNo.set(s.no, sale);
    return sale;
  }

  /** Loads once however many ask; an unknown id is not asked for again within a second. */
  async function find(key: string | number): Promise<Sale | null> {
    const until = unknownUntil.get(key);
    if (until !== undefined && until > Date.now()) return null;
    let promise = loading.get(key);
    if (!promise) {
      promise = load(typeof key === "number" ? { no: key } : { id: key }).finally(() => loading.delete(key));
      loading.set(key, promise);
    }
    const sale = await promise.catch((error) => {
      throw new Unavailable("Postgres does not answer", 1000, { cause: error });
    });
    if (!sale) {
      if (unknownUntil.size > 10_000) unknownUntil.clear();
      unknownUntil.set(key, Date.now() + UNKNOWN_SALE_MS);
    } else unknownUntil.delete(key);
    return sale;
  }

  function stamp(sale: Sale): Stamp {
    return {
      saleId: sale.id,
      epoch: sale.epoch,
      seqMin: sale.seqSeen,
      notAfterMs: sale.clockAheadMs === 0 ? 0 : Date.now() + sale.clockAheadMs + ARRIVE_WITHIN_MS,
    };
  }

  /** Rule G: the Redis we are connected to is the one that Postgres names for this sale. */
  function isRecorded(sale: Sale): boolean {
    const here = redis.instance();
    if (!here) throw new Unavailable("Redis is away");
    return sale.epoch > 0 && here.runId === sale.runId && here.replicationId === sale.replicationId;
  }

  async function once<T extends SaleClock>(sale: Sale, call: (s: Stamp) => Promise<T>): Promise<T> {
    if (!isRecorded(sale)) throw new StaleEpoch("", "another Redis instance");
    const [epoch, sentAt] = [sale.epoch, Date.now()];
    const answer = await call(stamp(sale));
    if (sale.epoch === epoch) {
      if (answer.seq > sale.seqSeen) sale.seqSeen = answer.seq;
      // Measured from before the call was sent, so never too small; +1 keeps it apart from "not known".
      sale.clockAheadMs = answer.nowMs - sentAt + 1;
      sale.clockReadAt = performance.now();
    }
    return answer;
  }

  return {
    /** The sale by id, from memory where it is known. */
    get: (id: string): Promise<Sale | null> | Sale => byId.get(id) ?? find(id),
    getByNo: (no: number): Promise<Sale | null> | Sale => byNo.get(no) ?? find(no),
    /** Reads settings and epoch again. */
    refresh: (id: string) => find(id),
    forgetUnknown: (id: string) => unknownUntil.delete(id),
    /** A sale this process knows already. */
    known: (id: string): Sale | undefined => byId.get(id),
    allKnown: () => [...byId.values()],

    async all(): Promise<Sale[]> {
      const ids = await db.select({ id: sales.id }).from(sales).orderBy(sales.no);
      const found = await Promise.all(ids.map(async ({ id }) => byId.get(id) ?? (await find(id))));
      return found.filter((s) => s !== null);
    },

    isRecorded,
    stamp,
    /** What to do when a sale's Redis is found missing, older, rolled back or broken. Set once by compose. */
    onStale(f: typeof repair) {
      repair = f;
    },

    /**
     * Calls a transition under the sale's epoch. On STALE_EPOCH the epoch is read again from Postgres; a newer one is tried
     * once, else the sale is handed to rebuild and Unavailable is thrown: nothing was granted.
     */
    async call<T extends SaleClock>(sale: Sale, call: (s: Stamp) => Promise<T>): Promise<T> {
      try {
        return await once(sale, call);
      } catch (error) {
        if (!(error instanceof StaleEpoch)) throw error;
        const before = sale.epoch;
        await find(sale.id);
        if (sale.epoch !== before && isRecorded(sale)) {
          try {
            return await once(sale, call);
          } catch (again) {
            if (!(again instanceof StaleEpoch)) throw again;
          }
        }
        repair(sale.id, error.message).catch((e) => log.error({ err: e, saleId: sale.id }, "rebuild failed"));
        throw new Unavailable("The sale is being rebuilt", 2000);
      }
    },
  };
}

/** A deadline on the sale's clock as an instant of Redis' clock; while the clock stands it moves along. */
export function deadlineAt(deadlineMs: number, clock: Pick<SaleClock, "nowMs" | "shiftMs" | "pausedAtMs">): number {
  return deadlineMs + clock.shiftMs + (clock.pausedAtMs > 0 ? clock.nowMs - clock.pausedAtMs : 0);
}

function readCart(sale: Sale, text: string): Cart {
  const lines = text.split(",").map((part): OrderLine => {
    const [sku = "", quantity] = part.split(":");
    const item = sale.items.get(sku);
    if (!item) throw new Problem("NOT_FOUND", `this sale has no item ${sku}`);
    return { sku, quantity: Number(quantity), unitPrice: item.unitPrice, name: item.name };
  });
  const shown = lines.map(({ sku, quantity, unitPrice }) => ({ sku, quantity, unitPrice }));
  return { lines, shown, amount: lines.reduce((sum, l) => sum + l.quantity * l.unitPrice, sale.shippingFee) };
}

/** The cart of `sku:quantity,...`, or NOT_FOUND when the sale has no such item. */
export function cartOf(sale: Sale, text: string): Cart {
  let cart = sale.carts.get(text);
  if (!cart) {
    cart = readCart(sale, text);
    if (sale.carts.size >= CARTS_MAX) sale.carts.clear();
    sale.carts.set(text, cart);
  }
  return cart;
}
