/** One request never fails another's: what one of them carries is refused to it alone, at the door, and beneath it by whichever store refuses. */
import { nanoid } from "nanoid";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  CONTACT,
  call,
  inParallel,
  makeWorld,
  operator,
  type Running,
  saleBodyOf,
  shopper,
  type World,
} from "./support.ts";

let world: World;
let api: Running;
let op: ReturnType<typeof operator>;
beforeAll(async () => {
  world = await makeWorld();
  api = await world.start();
  op = operator(api.url);
});
afterAll(() => world.close());

const bags = (stock: number) => [{ sku: "bag", name: "Bag", unitPrice: 1000, stock }];
const saleWith = async (stock: number) => (await op.create({ items: bags(stock) })).body.id;
/** What Postgres takes neither as text nor as JSON, and what no text of one line may have. */
const UNFIT = ["\u0000", "\ud800", "\udc00\ud800", "\u0007", "\u001b[31m", "\u007f", "\u0085", "\u2028"];
type Refused = { errors?: Array<{ path: string }> };

describe("at the door", () => {
  it("honest confirms beside poisoned ones in the same burst all begin", async () => {
    const saleId = await saleWith(200);
    const mine = `c${nanoid(4)}`;
    const ids = await inParallel(
      50,
      Array.from({ length: 200 }, (_, i) => async () => {
        const s = shopper(api.url, `${mine}-${i}`);
        return { s, id: (await s.reserve(saleId, "k")).body.id };
      }),
    );
    const answers = await Promise.all(
      ids.map(({ s, id }, i) =>
        s.confirm(
          id,
          { gateway: "cod" },
          { waitS: 0, more: i % 100 === 50 ? { contact: { ...CONTACT, name: "a\u0000b" } } : {} },
        ),
      ),
    );
    const honest = answers.filter((_, i) => i % 100 !== 50).map((a) => a.status);
    console.log(`burst of 200, two poisoned: ${honest.filter((s) => s >= 500).length} honest ones answered 5xx`);
    expect(honest.filter((s) => s !== 202 && s !== 200)).toEqual([]);
    const poisoned = answers.filter((_, i) => i % 100 === 50);
    expect(poisoned.map((a) => [a.status, (a.body as Refused).errors?.[0]?.path])).toEqual([
      [422, "contact.name"],
      [422, "contact.name"],
    ]);
  });

  it.each(UNFIT)("%j in any text of a shopper's or an operator's is 422 with its path", async (unfit) => {
    const saleId = await saleWith(5);
    const s = shopper(api.url, `c-${nanoid(6)}`);
    const { id } = (await s.reserve(saleId, "k")).body;
    const bad = `a${unfit}b`;
    const payment = { token: "tok_ok" };
    const confirms: Array<[Record<string, unknown>, string]> = [
      [{ contact: { ...CONTACT, name: bad } }, "contact.name"],
      [{ contact: { ...CONTACT, phone: bad } }, "contact.phone"],
      [{ contact: { ...CONTACT, email: `${bad}@example.jp` } }, "contact.email"],
      [{ shipTo: { postalCode: bad } }, "shipTo.postalCode"],
      [{ shipTo: { address: `a${unfit === "\u2028" ? "\u0000" : unfit}b` } }, "shipTo.address"],
      [{ returnUrl: `https://example.jp/${bad}` }, "returnUrl"],
      [{ payment: { token: bad } }, "payment.token"],
      [{ payment: { ...payment, gateway: bad } }, "payment.gateway"],
    ];
    for (const [more, path] of confirms) {
      const r = await s.confirm(id, payment, { waitS: 0, more });
      expect([r.status, (r.body as Refused).errors?.[0]?.path], path).toEqual([422, path]);
    }
    const sale = saleBodyOf({ items: bags(1) });
    const shop = { name: "Shop" };
    const creates: Array<[Record<string, unknown>, string]> = [
      [{ name: bad }, "name"],
      [{ items: [{ ...bags(1)[0], name: bad }] }, "items[0].name"],
      [{ shop: { name: bad } }, "shop.name"],
      [{ shop: { name: { ja: "店", en: bad } } }, "shop.name.en"],
      [{ shop: { ...shop, phone: bad } }, "shop.phone"],
      [{ gateways: [bad] }, "gateways[0]"],
      [{ terms: { notes: `a${unfit === "\u2028" ? "\u0000" : unfit}b` } }, "terms.notes"],
    ];
    for (const [more, path] of creates) {
      const r = await op.post<Refused>("/sales", { ...sale, ...more });
      expect([r.status, r.body.errors?.[0]?.path], path).toEqual([422, path]);
    }
    const patched = await op.patch(saleId, { name: bad });
    expect([patched.status, (patched.body as Refused).errors?.[0]?.path]).toEqual([422, "name"]);
    const order = `ord_${"0".repeat(26)}`;
    for (const [path, body] of [
      [`/sales/${saleId}/items/bag/stock`, { delta: 1, reason: bad }],
      [`/orders/${order}/refund`, { reason: bad, restock: false }],
      [`/orders/${order}/mail`, { reason: bad }],
    ] as const) {
      const r = await op.post<Refused>(path, body, { "idempotency-key": nanoid() });
      expect([r.status, r.body.errors?.[0]?.path], path).toEqual([422, "reason"]);
    }
    const log = await op.get<Refused>(`/log?saleId=${encodeURIComponent(unfit.replace(/\p{Cs}/gu, "\ufffd"))}`);
    expect([log.status, log.body.errors?.[0]?.path]).toEqual([422, "saleId"]);
    const other = await call(`${api.url}/v1/sales/${saleId}/reservations`, {
      headers: { authorization: shopper(api.url, bad).authorization },
    });
    expect(other.status).toBe(401);
  });
});
