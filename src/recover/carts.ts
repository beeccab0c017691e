/** Which carts cost a sum: what is left to ask when only the gateway remembers a charge. */
import type { Sale } from "../domain/sale.ts";

const TRIES_MAX = 100_000;

/** At most two, since only a single one tells anything; none when too many would have to be tried. */
export function cartsOfAmount(sale: Sale, amount: number): string[] {
  const items = [...sale.items.values()].sort((a, b) => (a.sku < b.sku ? -1 : 1));
  const found: string[] = [];
  let tries = 0;
  const walk = (at: number, left: number, units: number, parts: string[]): void => {
    if (found.length > 1 || ++tries > TRIES_MAX) return;
    if (at === items.length) {
      if (left === 0 && parts.length > 0) found.push(parts.join(","));
      return;
    }
    const item = items[at] as (typeof items)[number];
    for (let n = 0; n <= units && n * item.unitPrice <= left; n++)
      walk(at + 1, left - n * item.unitPrice, units - n, n === 0 ? parts : [...parts, `${item.sku}:${n}`]);
  };
  walk(0, amount - sale.shippingFee, sale.maxUnitsPerCustomer, []);
  return tries > TRIES_MAX ? [] : found;
}
