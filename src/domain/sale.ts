/** A sale as a process knows it, and the carts that its prices make. */
import { NoSuchItem } from "./errors.ts";
import type { Cart, Item, OrderLine, SaleDetails } from "./order.ts";

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
  /** Carts that were parsed already, by their lines: under load most are alike. */
  carts: Map<string, Cart>;
  epoch: number;
  runId: string;
  replicationId: string;
  /** Why it stands until a person has looked (recover/restored.ts); null while it sells. */
  stoppedWhy: string | null;
  /** Highest sequence number seen in this epoch. */
  seqSeen: number;
  /** Redis' clock minus ours, ms; rather too large than too small. */
  clockAheadMs: number;
  /** When that was measured, on our monotonic clock. */
  clockReadAt: number;
}

const CARTS_MAX = 200;
/** How long after its end and the end of its last hold a sale is still visited all the time, for late payments. */
const VISITED_AFTER_MS = 3_600_000;

/** Long past: the loops visit it only now and then, so that the cost does not grow with every sale a shop ever had. */
export const isOver = (s: Pick<Sale, "closesAtMs" | "holdMs">): boolean =>
  Date.now() > s.closesAtMs + s.holdMs + VISITED_AFTER_MS;

function readCart(sale: Sale, text: string): Cart {
  const lines = text.split(",").map((part): OrderLine => {
    const [sku = "", quantity] = part.split(":");
    const item = sale.items.get(sku);
    if (!item) throw new NoSuchItem(sku);
    return { sku, quantity: Number(quantity), unitPrice: item.unitPrice, name: item.name };
  });
  const shown = lines.map(({ sku, quantity, unitPrice }) => ({ sku, quantity, unitPrice }));
  return { lines, shown, amount: lines.reduce((sum, l) => sum + l.quantity * l.unitPrice, sale.shippingFee) };
}

/** The cart of `sku:quantity,...`; throws NoSuchItem when the sale has no such item. */
export function cartOf(sale: Sale, text: string): Cart {
  let cart = sale.carts.get(text);
  if (!cart) {
    cart = readCart(sale, text);
    if (sale.carts.size >= CARTS_MAX) sale.carts.clear();
    sale.carts.set(text, cart);
  }
  return cart;
}
