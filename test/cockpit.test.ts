/**
 * What the cockpit stands on, by HTTP alone: its session, its events, the trail, mails sent again, and what a sale says
 * of its shop.
 */
import { describe, expect, it } from "vitest";
import { preferredLanguage } from "../src/domain/language.ts";
import { formatInstant, taxesOf } from "../src/domain/money.ts";
import type { Point } from "../src/http/live.ts";
import type { SaleFigures } from "../src/http/sale-figures.ts";
import { ADMIN_TOKEN, call, saleBodyOf, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();

async function signIn(
  url = api.url,
  token = ADMIN_TOKEN,
  headers: Record<string, string> = { "sec-fetch-site": "same-origin" },
) {
  const body = new URLSearchParams({ token });
  const r = await fetch(`${url}/admin/sign-in`, { method: "POST", body, redirect: "manual", headers });
  return {
    status: r.status,
    cookie: (r.headers.get("set-cookie") ?? "").split(";")[0] as string,
    set: r.headers.get("set-cookie") ?? "",
  };
}

describe("the cockpit's session", () => {
  it("is a strict, http-only cookie that is not the token, and does what the token does", async () => {
    const { status, cookie, set } = await signIn();
    expect(status).toBe(303);
    for (const part of ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"]) expect(set).toContain(part);
    expect(set).not.toContain(ADMIN_TOKEN);
    expect((await call(`${api.url}/v1/admin/sales`, { headers: { cookie } })).status).toBe(200);
  });

  it("does nothing for a page of another site, whatever that sends along", async () => {
    const { cookie } = await signIn();
    const saleId = (await op.create()).body.id;
    const patch = (headers: Record<string, string>) =>
      call(`${api.url}/v1/admin/sales/${saleId}`, {
        method: "PATCH",
        headers: { cookie, "content-type": "application/json", ...headers },
        body: JSON.stringify({ reserving: "off" }),
      });
    const host = new URL(api.url).host;
    const others = [
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
      { "sec-fetch-site": "none" },
      { "sec-fetch-site": "cross-site", origin: `http://${host}` },
      { origin: "https://evil.example" },
      { origin: "null" },
      {},
    ];
    for (const headers of others)
      expect((await patch(headers as Record<string, string>)).status, JSON.stringify(headers)).toBe(401);
    expect(
      (await call(`${api.url}/v1/admin/sales`, { headers: { cookie, "sec-fetch-site": "cross-site" } })).status,
    ).toBe(401);
    expect((await op.sale(saleId)) as unknown as { reserving: string }).toMatchObject({ reserving: "on" });
    // A browser too old to say where a request comes from says its origin.
    expect((await patch({ origin: `http://${host}` })).status).toBe(200);
    expect((await patch({ "sec-fetch-site": "same-origin" })).status).toBe(200);
    expect((await signIn(api.url, ADMIN_TOKEN, { "sec-fetch-site": "cross-site" })).status).toBe(401);
  });

  it("is not had for a wrong token, a forged or a foreign cookie, and ends with its token", async () => {
    expect(await signIn(api.url, "wrong-token-of-somebody")).toMatchObject({ status: 401, cookie: "" });
    const { cookie } = await signIn();
    const get = (c: string, url = api.url) =>
      call(`${url}/v1/admin/sales`, { headers: { cookie: c } }).then((r) => r.status);
    expect(await get(`${cookie}x`)).toBe(401);
    const [head, body] = cookie.split(".");
    expect(await get(`${head}.${body}.`)).toBe(401);
    // A second token lives beside the first; the session of a token that was taken away is over.
    const both = await world.start({ ADMIN_TOKEN: `another-admin-token,${ADMIN_TOKEN}`, ROLE: "api" });
    expect(await get(cookie, both.url)).toBe(200);
    const other = await world.start({ ADMIN_TOKEN: "another-admin-token", ROLE: "api" });
    expect(await get(cookie, other.url)).toBe(401);
    // A bearer that is wrong is not saved by a session beside it.
    const mixed = await call(`${api.url}/v1/admin/sales`, { headers: { cookie, authorization: "Bearer wrong" } });
    expect(mixed.status).toBe(401);
    await Promise.all([both.close(), other.close()]);
  });

  it("is marked secure behind a proxy that ends TLS, and only where proxies are trusted", async () => {
    const headers = { "sec-fetch-site": "same-origin", "x-forwarded-proto": "https" };
    expect((await signIn(api.url, ADMIN_TOKEN, headers)).set).not.toContain("Secure");
    const behind = await world.start({ TRUSTED_PROXIES: "1", ROLE: "api" });
    expect((await signIn(behind.url, ADMIN_TOKEN, headers)).set).toContain("; Secure");
    await behind.close();
  });

  it("is needed for every page of the cockpit, and storefront and mails are of local mode alone", async () => {
    for (const path of ["/admin", "/admin/new", "/admin/sales/x/certificate"]) {
      const page = String((await call(`${api.url}${path}`)).body);
      expect(page).toContain('action="/admin/sign-in"');
    }
    const production = await world.start({ ROLE: "api" }, { mailbox: false });
    for (const path of ["/", "/s/x", "/mails", "/demo/shopper"])
      expect(
        (await call(`${production.url}${path}`, { method: path.startsWith("/demo") ? "POST" : "GET" })).status,
        path,
      ).toBe(404);
    expect((await call(`${production.url}/admin`)).status).toBe(200);
    await production.close();
  });
});

describe("the events", () => {
  it("begin with the past, then tell figures, rates and books as the sale goes", async () => {
    const saleId = (await op.create()).body.id;
    const stop = new AbortController();
    const response = await fetch(`${api.url}/v1/admin/events`, {
      headers: { authorization: `Bearer ${ADMIN_TOKEN}` },
      signal: stop.signal,
    });
    const told: Array<{ event: string; data: unknown }> = [];
    const reading = (async () => {
      let text = "";
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        text += new TextDecoder().decode(chunk);
        const parts = text.split("\n\n");
        text = parts.pop() ?? "";
        for (const p of parts)
          told.push({
            event: /event: (\w+)/.exec(p)?.[1] ?? "",
            data: JSON.parse(/data: (.*)/.exec(p)?.[1] ?? "null"),
          });
      }
    })().catch(() => {});
    await until("figures", () => told.some((t) => t.event === "figures"));
    expect(told[0]?.event).toBe("history");
    for (let i = 0; i < 4; i++) await shopper(api.url, `watched-${i}`).reserve(saleId, "k");
    const point = await until("the holds", () => {
      const points = told.flatMap((t) => (t.event === "figures" ? [(t.data as { point: Point }).point] : []));
      return points.find((p) => p.units[saleId]?.[0]?.[1] === 4);
    });
    expect(point.units[saleId]).toEqual([[6, 4, 0, 0]]);
    await until("the rate", () =>
      told.some((t) => t.event === "figures" && (t.data as { rates: { granted: number } }).rates.granted > 0),
    );
    await until("the books", () =>
      told.some((t) => t.event === "books" && (t.data as Array<{ saleId: string }>).some((b) => b.saleId === saleId)),
    );
    const last = told.findLast((t) => t.event === "figures")?.data as { sales: SaleFigures[] };
    expect(last.sales.find((s) => s.id === saleId)).toMatchObject({
      gates: [{ gateway: "sandbox", breaker: "closed" }],
      journal: { oldestMs: expect.any(Number) },
    });
    stop.abort();
    await reading;
  });
});

describe("an operator", () => {
  it("finds what was done in the trail, newest first, of one sale or of all", async () => {
    const [a, b] = [(await op.create()).body.id, (await op.create()).body.id];
    await op.topUp(a, 3, "k");
    await op.patch(a, { extendHoldsMs: 60_000 });
    const log = await op.get<{ entries: Array<{ action: string; saleId: string; detail: unknown }> }>(
      `/log?saleId=${a}`,
    );
    expect(log.body.entries.map((e) => e.action)).toEqual(["patch sale", "top-up", "create sale"]);
    expect(log.body.entries[1]?.detail).toEqual({ sku: "bag", delta: 3, reason: "test" });
    expect((await op.get<{ entries: unknown[] }>("/log?limit=1")).body.entries).toMatchObject([{ saleId: a }]);
    expect((await op.get("/log?limit=0")).status).toBe(422);
    expect(b).toBeTruthy();
  });

  it("sends a mail again under an id of its own, once per press", async () => {
    const saleId = (await op.create()).body.id;
    const s = shopper(api.url, "mailed");
    const { id } = (await s.reserve(saleId, "k")).body;
    const orderId = (await s.confirm(id, { gateway: "cod" })).body.orderId as string;
    await until("the record", async () => (await s.order(orderId)).status === 200);
    for (let i = 0; i < 2; i++) expect((await op.post(`/orders/${orderId}/mail`, { reason: "lost" })).status).toBe(202);
    const mails = await until("three mails", async () => {
      const found = (await world.mailbox.list()).filter((m) => m.subject.includes(orderId));
      return found.length >= 3 && found;
    });
    expect(new Set(mails.map((m) => m.messageId)).size).toBe(3);
    expect((await op.post("/orders/ord_NOTHING/mail", { reason: "x" })).status).toBe(404);
    expect((await op.post(`/orders/${orderId}/mail`, {})).status).toBe(422);
    await until("the books", async () => (await op.audit(saleId)).mails.sent === 3);
    expect(await op.audit(saleId)).toMatchObject({ ok: true, mails: { withoutOrder: 0 } });
  });

  it("who keeps the certificate as a file has all of it: its style inside, nothing to load", async () => {
    const saleId = (await op.create()).body.id;
    const page = await op.get<string>(`/sales/${saleId}/audit`, { accept: "text/html" });
    expect(page.headers.get("content-security-policy")).toContain("default-src 'none'");
    expect(String(page.body)).toContain("The books balance.");
    expect(String(page.body)).toMatch(/<style>[^<]*\.certificate/);
    expect(String(page.body)).not.toMatch(/(src|href)=/);
  });

  it("gets orders as CSV by a link, which cannot set a header", async () => {
    const r = await op.get<string>("/orders?format=csv", { accept: "text/html" });
    expect(r.headers.get("content-type")).toContain("text/csv");
    expect(String(r.body)).toContain("order_id,reservation_id");
    expect((await op.get("/orders?format=xls")).status).toBe(422);
  });

  it("says shop, terms and taxes with the sale, reads them back, and is told what is wrong with them", async () => {
    const shop = { name: { ja: "店", en: "Shop" }, invoiceNumber: "T1234567890123" };
    const terms = { delivery: "soon", cancellation: { ja: "不可", en: "none" } };
    const items = [{ sku: "bag", name: "Bag", unitPrice: 1_080, stock: 1, taxPercent: 8 }];
    const made = await op.create({ shop, terms, items });
    expect(made.body).toMatchObject({ shop, terms, taxPercent: 10 });
    const body = saleBodyOf();
    for (const [wrong, path] of [
      [{ shop: { name: "x", invoiceNumber: "1234567890123" } }, "shop.invoiceNumber"],
      [{ shop: { name: { ja: "x" } } }, "shop.name"],
      [{ terms: { delivery: "" } }, "terms.delivery"],
      [{ taxPercent: 101 }, "taxPercent"],
      [{ shop: { name: "x", more: 1 } }, "shop.more"],
    ] as const) {
      const r = await op.post<{ errors: Array<{ path: string }> }>("/sales", { ...body, ...wrong });
      expect([r.status, r.body.errors[0]?.path.startsWith(path)], path).toEqual([422, true]);
    }
  });
});

describe("money and words", () => {
  it("taxes are rounded down once per rate, not per line", () => {
    const parts = [
      ...Array.from({ length: 3 }, () => ({ amount: 105, taxPercent: 10 })),
      { amount: 1_080, taxPercent: 8 },
      { amount: 500, taxPercent: 0 },
    ];
    expect(taxesOf(parts)).toEqual([
      { percent: 10, amount: 315, tax: 28 },
      { percent: 8, amount: 1_080, tax: 80 },
    ]);
    expect(taxesOf([])).toEqual([]);
  });

  it("instants of a sale in yen are on Japan's clock, others in UTC, and say so", () => {
    expect(formatInstant("2026-12-31T15:00:00Z", "JPY", "ja")).toBe("2027/01/01 0:00 JST");
    expect(formatInstant("2026-12-31T15:00:00Z", "EUR", "en")).toMatch(/Dec 31, 2026, 3:00.PM UTC/);
  });

  it.each([
    ["ja", "ja"],
    ["ja-JP,ja;q=0.9,en;q=0.8", "ja"],
    ["en-US,en;q=0.9,ja;q=0.8", "en"],
    ["fr-FR,ja;q=0.5,en;q=0.4", "ja"],
    ["en;q=0.2,ja;q=0.7", "ja"],
    ["ja;q=0", "en"],
    ["de", "en"],
    [undefined, "en"],
  ])("Accept-Language %s is answered in %s", (header, language) => {
    expect(preferredLanguage(header)).toBe(language);
  });
});
