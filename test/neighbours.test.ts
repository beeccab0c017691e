/**
 * One request never fails another's: what one of them carries is refused to it alone, at the door, and beneath it by
 * whichever store refuses.
 */
import { connect } from "node:net";
import { eq } from "drizzle-orm";
import { nanoid } from "nanoid";
import { describe, expect, it } from "vitest";
import { items } from "../src/stores/schema.ts";
import { ADMIN_TOKEN, bags, CONTACT, call, inParallel, saleBodyOf, shopper } from "./support.ts";
import { api, op, useWorld } from "./world.ts";

useWorld();

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

  it("a token whose customer is no text of visible characters is 401", async () => {
    const saleId = await saleWith(1);
    for (const sub of [...UNFIT.map((u) => `a${u}b`), "a b", "", "x".repeat(129), "\u200b"]) {
      const r = await call(`${api.url}/v1/sales/${saleId}/reservations`, {
        headers: { authorization: shopper(api.url, sub).authorization },
      });
      expect([r.status, r.body.code], JSON.stringify(sub)).toEqual([401, "UNAUTHENTICATED"]);
    }
    // In code points: 128 of them outside the basic plane are 256 units.
    const long = shopper(api.url, "\u{20bb7}".repeat(128));
    expect((await long.list(saleId)).status).toBe(200);
  });

  it("a text is as long as it has code points; addresses, terms and notes may have line breaks and tabs", async () => {
    const saleId = await saleWith(5);
    const s = shopper(api.url, `long-${nanoid(6)}`);
    const { id } = (await s.reserve(saleId, "k")).body;
    const confirm = (more: Record<string, unknown>) => s.confirm(id, { gateway: "cod" }, { waitS: 0, more });
    const tooLong = await confirm({ contact: { ...CONTACT, name: "\u{20bb7}".repeat(201) } });
    expect([tooLong.status, (tooLong.body as Refused).errors?.[0]?.path]).toEqual([422, "contact.name"]);
    const broken = await confirm({ contact: { ...CONTACT, name: "a\nb" } });
    expect([broken.status, (broken.body as Refused).errors?.[0]?.path]).toEqual([422, "contact.name"]);
    const name = "\u{20bb7}\u{1f468}\u200d\u{1f469}".repeat(50);
    expect((await confirm({ contact: { ...CONTACT, name }, shipTo: { address: "a\n\tb\r\nc" } })).status).toBe(202);
    const lines = "a\n\tb";
    const created = await op.create({
      shop: { name: "Shop", address: lines },
      terms: { payment: lines, delivery: lines, cancellation: lines, notes: { ja: lines, en: lines } },
    });
    expect(created.status).toBe(201);
  });

  it.each([
    ["1969-12-31T23:59:59Z", "opensAt"],
    ["1999-12-31T23:59:59.999Z", "opensAt"],
    ["2100-01-01T00:00:00Z", "closesAt"],
    ["9999-12-31T23:59:59Z", "closesAt"],
  ])("%s is not between 2000 and 2100: 422 at %s, and the list of sales stays whole", async (instant, path) => {
    const r = await op.post<Refused>("/sales", { ...saleBodyOf({ items: bags(1) }), [path]: instant });
    expect([r.status, r.body.errors?.[0]?.path]).toEqual([422, path]);
    const patched = await op.patch(await saleWith(1), { closesAt: instant });
    expect([patched.status, (patched.body as Refused).errors?.[0]?.path]).toEqual([422, "closesAt"]);
    expect((await op.get("/sales")).status).toBe(200);
  });

  it("more units than an item can count are 422 at delta, and nothing is put on sale", async () => {
    const saleId = await saleWith(1);
    const { setup, sale } = { setup: api.service.ctx.db, sale: eq(items.saleId, saleId) };
    await setup
      .update(items)
      .set({ granted: 2 ** 31 - 10 })
      .where(sale);
    const r = await op.topUp(saleId, 100, nanoid());
    expect([r.status, (r.body as Refused).errors?.[0]?.path]).toEqual([422, "delta"]);
    expect((await setup.select().from(items).where(sale))[0]?.granted).toBe(2 ** 31 - 10);
  });

  it("a sign-in form that is too large or cannot be read is refused like any other", async () => {
    const signIn = (type: string, body: string) =>
      call(`${api.url}/admin/sign-in`, {
        method: "POST",
        headers: { "content-type": type, "sec-fetch-site": "same-origin" },
        body,
      });
    expect((await signIn("application/x-www-form-urlencoded", `token=${"x".repeat(5_000)}`)).status).toBe(413);
    expect((await signIn("multipart/form-data; boundary=x", "no form")).status).toBe(401);
  });
});

describe("answers", () => {
  it("of event streams carry X-Request-Id and the headers that every answer carries", async () => {
    const saleId = await saleWith(5);
    const s = shopper(api.url, `events-${nanoid(6)}`);
    const { id } = (await s.reserve(saleId, "k")).body;
    for (const [path, authorization] of [
      [`/v1/reservations/${id}/events`, s.authorization],
      ["/v1/admin/events", `Bearer ${ADMIN_TOKEN}`],
    ] as const) {
      const gone = new AbortController();
      const r = await fetch(`${api.url}${path}`, {
        headers: { authorization, "x-request-id": "stream-1" },
        signal: gone.signal,
      });
      expect(r.status).toBe(200);
      expect(r.headers.get("content-type")).toContain("text/event-stream");
      expect(r.headers.get("x-request-id")).toBe("stream-1");
      expect(r.headers.get("x-content-type-options")).toBe("nosniff");
      expect(r.headers.get("content-security-policy")).toContain("default-src 'none'");
      gone.abort();
    }
  });

  it("to what is no HTTP, or has no name of a host, carry X-Request-Id too", async () => {
    const get = (more: string) => `GET /healthz HTTP/1.1\r\n${more}\r\n\r\n`;
    const cases: Array<[string, number]> = [
      ["no http at all\r\n\r\n", 400],
      [get("host: x\r\nx-odd: a\u0000b"), 400],
      [get(`host: x\r\nx-long: ${"x".repeat(9_000)}`), 431],
      [get("host: a b"), 400],
      [get("x-no: host"), 400],
      ["GET http:// HTTP/1.1\r\nhost: x\r\n\r\n", 400],
      [get("host: [\r\nconnection: close"), 400],
    ];
    for (const [text, status] of cases) {
      const answer = await spoken(Number(new URL(api.url).port), text);
      expect(answer, text.slice(0, 60)).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
      expect(answer.toLowerCase(), text.slice(0, 60)).toContain("x-request-id: ");
      expect(answer).toContain("application/problem+json");
    }
  });
});

/** What is answered to those bytes, until the other side closes or falls silent. */
function spoken(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1");
    let answer = "";
    socket.setTimeout(1_000, () => socket.destroy());
    socket.on("data", (chunk) => (answer += chunk.toString("latin1")));
    socket.on("close", () => resolve(answer));
    socket.on("error", reject);
    socket.write(text);
  });
}
