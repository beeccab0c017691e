/** The HTTP contract: every route, every code, every way to be wrong. Other programs are written against it. */

import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { type IncomingMessage, request as rawRequest, type ServerResponse } from "node:http";
import { eq } from "drizzle-orm";
import fc from "fast-check";
import { createSigner } from "fast-jwt";
import { beforeAll, describe, expect, it } from "vitest";
import { checkReserveBody, reserveBody } from "../src/http/contract.ts";
import { PROBLEMS, type ProblemCode } from "../src/http/problem.ts";
import { makeLog } from "../src/log.ts";
import { payments } from "../src/stores/schema.ts";
import { assertProperty } from "./replay.ts";
import { ADMIN_TOKEN, CONTACT, call, inParallel, operator, SECRET, saleBodyOf, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();
let saleId: string;
beforeAll(async () => {
  saleId = (
    await op.create({ items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: 1000 }], maxUnitsPerCustomer: 100 })
  ).body.id;
});

const document = async () =>
  (
    await call<{ paths: Record<string, Record<string, { responses: Record<string, { description: string }> }>> }>(
      `${api.url}/openapi.json`,
    )
  ).body;
/** What a request could move at once; `sold` follows by itself when an order is recorded. */
const stockNow = async () =>
  JSON.stringify(
    (await op.sale(saleId)).items.map(({ granted, free, held, claimed }) => ({ granted, free, held, claimed })),
  );

describe("the document", () => {
  it("has every JSON route of the router, and docs/reference.md names each of them", async () => {
    const paths = (await document()).paths;
    const documented = Object.entries(paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((m) => `${m} ${path}`),
    );
    const routed = api.service.specs.map((s) => `${s.method} ${s.path}`);
    expect(documented.sort()).toEqual(routed.sort());
    const served = api.service.app.routes
      .filter((r) => r.method !== "ALL" && r.path.startsWith("/v1"))
      .map((r) => `${r.method.toLowerCase()} ${r.path.replace(/:(\w+)/g, "{$1}")}`);
    expect([...new Set(served)].sort()).toEqual(routed.filter((r) => r.includes(" /v1")).sort());
    const reference = readFileSync(new URL("../docs/reference.md", import.meta.url), "utf8");
    for (const route of routed) {
      const [method = "", path] = route.split(" ");
      expect(reference, route).toContain(`\`${method.toUpperCase()} ${path}\``);
    }
    for (const code of Object.keys(PROBLEMS)) expect(reference, code).toContain(`\`${code}\``);
  });

  it("is accepted by the documentation page, which is served without any other host", async () => {
    const page = await call<string>(`${api.url}/docs`);
    expect(page.status).toBe(200);
    expect(String(page.body)).not.toMatch(/https?:\/\//);
    const files = [...String(page.body).matchAll(/(?:href|src)="([^"]+)"/g)].map((m) => m[1] as string);
    expect(files).toHaveLength(4);
    for (const file of files) expect((await fetch(`${api.url}${file}`)).status, file).toBe(200);
    expect((await fetch(`${api.url}/docs/package.json`)).status).toBe(404);
  });
});

describe("who calls", () => {
  const base = { algorithm: "HS256" as const, key: SECRET, aud: "fukubukuro", expiresIn: 60_000 };
  const sign = (claims: Record<string, unknown>, change: Record<string, unknown> = {}) =>
    createSigner({ ...base, ...change } as unknown as Parameters<typeof createSigner>[0])(claims) as unknown as string;
  const none = (claims: Record<string, unknown>) =>
    `${[{ alg: "none", typ: "JWT" }, claims].map((p) => Buffer.from(JSON.stringify(p)).toString("base64url")).join(".")}.`;
  const now = () => Math.floor(Date.now() / 1000);
  const noExp = () => {
    const unsigned = [
      { alg: "HS256", typ: "JWT" },
      { sub: "c", aud: "fukubukuro" },
    ]
      .map((p) => Buffer.from(JSON.stringify(p)).toString("base64url"))
      .join(".");
    return `${unsigned}.${createHmac("sha256", SECRET).update(unsigned).digest("base64url")}`;
  };

  it("is 401 on every shopper and admin route for no token, a forged one, another algorithm, audience or time", async () => {
    const good = sign({ sub: "c" });
    const bad = [
      undefined,
      "Bearer",
      "Bearer x",
      `Basic ${good}`,
      `Bearer ${good.slice(0, -2)}`,
      `Bearer ${none({ sub: "c", aud: "fukubukuro", exp: now() + 60 })}`,
      `Bearer ${sign({ sub: "c" }, { algorithm: "HS512" })}`,
      `Bearer ${sign({ sub: "c" }, { key: "another-secret-of-someone" })}`,
      `Bearer ${sign({ sub: "c" }, { aud: "else" })}`,
      `Bearer ${sign({ sub: "c", iat: now() - 7200 }, { expiresIn: 1000 })}`,
      `Bearer ${sign({ sub: "" })}`,
      `Bearer ${sign({ sub: "a b" })}`,
      `Bearer ${sign({ sub: "x".repeat(129) })}`,
      `Bearer ${sign({})}`,
      `Bearer ${noExp()}`,
    ];
    // The list comes from the router, so that a new route cannot be missed.
    for (const spec of api.service.specs.filter((s) => s.who !== "anyone")) {
      const tokens =
        spec.who === "admin"
          ? [undefined, "Bearer wrong", `Bearer ${good}`, `Bearer ${ADMIN_TOKEN}x`, "Bearer "]
          : [...bad, `Bearer ${ADMIN_TOKEN}`];
      for (const authorization of tokens) {
        const url = `${api.url}${spec.path.replace("{saleId}", saleId).replace(/\{\w+\}/g, "x")}`;
        const r = await call(url, {
          method: spec.method.toUpperCase(),
          headers: { ...(authorization && { authorization }), "content-type": "application/json" },
          ...(spec.body && { body: "{}" }),
        });
        expect([r.status, r.body.code], `${spec.method} ${spec.path} ${authorization}`).toEqual([
          401,
          "UNAUTHENTICATED",
        ]);
        expect(r.headers.get("www-authenticate")).toBe("Bearer");
      }
    }
  });

  it("may be signed with any of several live secrets, and is let in up to 30 s after exp", async () => {
    const two = await world.start({ SHOPPER_TOKEN_SECRET: `a-newer-secret-of-the-shop,${SECRET}`, ROLE: "api" });
    for (const secret of ["a-newer-secret-of-the-shop", SECRET])
      expect((await shopper(two.url, "c", secret).list(saleId)).status).toBe(200);
    const late = sign({ sub: "c", iat: now() - 100 }, { expiresIn: 90_000 });
    expect(
      (await call(`${two.url}/v1/sales/${saleId}/reservations`, { headers: { authorization: `Bearer ${late}` } }))
        .status,
    ).toBe(200);
    await two.close();
  });

  it("without ADMIN_TOKEN admin routes answer 503 ADMIN_DISABLED", async () => {
    const closed = await world.start({ ADMIN_TOKEN: "", ROLE: "api" });
    expect((await operator(closed.url).get("/sales")).body.code).toBe("ADMIN_DISABLED");
    await closed.close();
  });

  it("never reaches another customer's reservation or order: 404, and a forged id is refused before any store is asked", async () => {
    const [owner, thief] = [shopper(api.url, "owner"), shopper(api.url, "thief")];
    const { id } = (await owner.reserve(saleId, "k")).body;
    const orderId = (await owner.confirm(id, { gateway: "cod" })).body.orderId as string;
    for (const r of [
      await thief.read(id),
      await thief.release(id),
      await thief.confirm(id),
      await thief.order(orderId),
    ])
      expect([r.status, r.body.code]).toEqual([404, "NOT_FOUND"]);
    expect(
      (await call(`${api.url}/v1/reservations/${id}/events`, { headers: { authorization: thief.authorization } }))
        .status,
    ).toBe(404);
    // Stores asked would answer 503 here: neither exists.
    const { makeIds } = await import("../src/domain/ids.ts");
    const ids = makeIds("s");
    const real = ids.reservationId(1, "owner", "a".repeat(22));
    expect(ids.parse(real, "owner")).toMatchObject({ saleNo: 1, key: "a".repeat(22) });
    for (const forged of [
      real.slice(0, -1) + (real.endsWith("A") ? "B" : "A"),
      real.replace("_1.", "_2."),
      real.replace("aaa", "aab"),
      "rsv_x",
      "",
      `${real}x`,
    ])
      expect(ids.parse(forged, "owner")).toBeNull();
    expect(ids.parse(real, "thief")).toBeNull();
  });
});

describe("bad input changes nothing and is told where it is wrong", () => {
  const post = (path: string, body: string, headers: Record<string, string> = {}) =>
    call<{ errors?: Array<{ path: string }> }>(`${api.url}${path}`, {
      method: "POST",
      headers: {
        authorization: shopper(api.url, "bad").authorization,
        "content-type": "application/json",
        "idempotency-key": "k",
        ...headers,
      },
      body,
    });
  const reserve = (body: string, headers: Record<string, string> = {}) =>
    post(`/v1/sales/${saleId}/reservations`, body, headers);
  const line = (quantity: string, more = "") => `{"lines":[{"sku":"bag","quantity":${quantity}${more}}]}`;

  it.each([
    [line("-1"), "lines[0].quantity"],
    [line("0"), "lines[0].quantity"],
    [line("1.5"), "lines[0].quantity"],
    [line("100"), "lines[0].quantity"],
    [line("1e999"), "lines[0].quantity"],
    [line("9007199254740993"), "lines[0].quantity"],
    [line('"1"'), "lines[0].quantity"],
    [line('"5abc"'), "lines[0].quantity"],
    [line("null"), "lines[0].quantity"],
    [line("true"), "lines[0].quantity"],
    [line("[1]"), "lines[0].quantity"],
    [line("1", ',"unitPrice":1'), "lines[0].unitPrice"],
    [line("1", ',"__proto__":{"x":1}'), "lines[0].__proto__"],
    [`{"lines":[{"sku":"bag","quantity":1}],"userId":"x"}`, "userId"],
    [`{"lines":[{"sku":"bag","quantity":1}],"__proto__":{"admin":true}}`, "__proto__"],
    [`{"lines":[{"sku":"bag","quantity":1}],"constructor":{}}`, "constructor"],
    [`{"lines":[{"sku":"bag","quantity":1},{"sku":"bag","quantity":1}]}`, "lines"],
    [`{"lines":[]}`, "lines"],
    [`{"lines":{}}`, "lines"],
    [`{"lines":[${Array(11).fill('{"sku":"a","quantity":1}').join(",")}]}`, "lines"],
    [`{"lines":[null]}`, "lines[0]"],
    [`{"lines":[[]]}`, "lines[0]"],
    [`{"lines":[{"sku":"a b","quantity":1}]}`, "lines[0].sku"],
    [`{"lines":[{"sku":"{bag}","quantity":1}]}`, "lines[0].sku"],
    [`{"lines":[{"sku":"bag\\r\\n","quantity":1}]}`, "lines[0].sku"],
    [`{"lines":[{"sku":"bag\\u0000","quantity":1}]}`, "lines[0].sku"],
    [`{"lines":[{"sku":"bag:1,box","quantity":1}]}`, "lines[0].sku"],
    [`{"lines":[{"quantity":1}]}`, "lines[0].sku"],
    ["{}", "lines"],
    ["[]", ""],
    ["null", ""],
    ["1", ""],
    ['"lines"', ""],
  ])("%s -> 422 at %s", async (body, path) => {
    const before = await stockNow();
    const r = await reserve(body);
    expect([r.status, r.body.code]).toEqual([422, "INVALID_REQUEST"]);
    expect(r.body.errors?.map((e) => e.path)).toContain(path);
    expect(r.headers.get("content-type")).toContain("application/problem+json");
    expect(await stockNow()).toBe(before);
  });

  it.each([
    "",
    "{",
    "{'a':1}",
    "NaN",
    '{"lines":[{"sku":"bag","quantity":NaN}]}',
    '{"lines":[{"sku":"bag","quantity":0x10}]}',
    "\u0000",
    '{"a":1}{',
    "[".repeat(8000),
  ])("%j -> 400 INVALID_JSON", async (body) => {
    const r = await reserve(body);
    expect([r.status, r.body.code]).toEqual([400, "INVALID_JSON"]);
  });

  it("a body of 1 MB -> 413, with a Content-Length and in chunks, and the connection serves on", async () => {
    const big = `{"lines":"${"x".repeat(1_000_000)}"}`;
    expect((await reserve(big)).body.code).toBe("BODY_TOO_LARGE");
    const status = await new Promise<number>((resolve, reject) => {
      const r = rawRequest(`${api.url}/v1/sales/${saleId}/reservations`, {
        method: "POST",
        headers: {
          authorization: shopper(api.url, "bad").authorization,
          "content-type": "application/json",
          "idempotency-key": "k",
          "transfer-encoding": "chunked",
        },
      });
      r.on("response", (a) => resolve(a.statusCode ?? 0)).on("error", reject);
      for (let i = 0; i < 100; i++) r.write("x".repeat(10_000));
      r.end();
    });
    expect(status).toBe(413);
    expect((await fetch(`${api.url}/healthz`)).status).toBe(200);
  });

  it("another content type -> 415; no or a wrong Idempotency-Key -> 422", async () => {
    expect((await reserve(line("1"), { "content-type": "text/plain" })).body.code).toBe("UNSUPPORTED_MEDIA_TYPE");
    expect((await reserve(line("1"), { "content-type": "application/jsonx" })).body.code).toBe(
      "UNSUPPORTED_MEDIA_TYPE",
    );
    for (const key of ["", "x".repeat(65), "a b"]) {
      const r = await reserve(line("1"), { "idempotency-key": key });
      expect([r.status, r.body.errors?.[0]?.path]).toEqual([422, "Idempotency-Key"]);
    }
  });

  it("pay refuses unknown fields, missing contact, a card number, a gateway or token that does not fit", async () => {
    const { id } = (await shopper(api.url, "bad").reserve(saleId, "confirm")).body;
    const confirm = (body: unknown) => post(`/v1/reservations/${id}/pay`, JSON.stringify(body));
    const contact = CONTACT;
    const cases: Array<[unknown, string]> = [
      [{ payment: { token: "tok_ok" } }, "contact"],
      [{ payment: { token: "tok_ok" }, contact: { email: "not-an-address", name: "x" } }, "contact.email"],
      [{ payment: { token: "tok_ok" }, contact: { email: "a@b.jp" } }, "contact.name"],
      [{ payment: { token: "tok_ok", cardNumber: "4242424242424242" }, contact }, "payment.cardNumber"],
      [{ payment: { token: "tok_ok" }, contact, amount: 1 }, "amount"],
      [{ payment: {}, contact }, "payment.token"],
      [{ contact }, "payment.token"],
      [{ payment: { gateway: "stripe", token: "x" }, contact }, "payment.gateway"],
      [{ payment: { gateway: "cod", token: "x" }, contact }, "payment.token"],
      [{ payment: { token: "tok_ok" }, contact, returnUrl: "javascript:alert(1)" }, "returnUrl"],
      [{ payment: { token: "tok_ok" }, contact, shipTo: { zip: "1" } }, "shipTo.zip"],
    ];
    for (const [body, path] of cases) {
      const r = await confirm(body);
      expect([r.status, r.body.errors?.[0]?.path], JSON.stringify(body)).toEqual([422, path]);
    }
    expect((await shopper(api.url, "bad").read(id)).body.status).toBe("held");
  });

  it("admin bodies are as strict, and unknown sales, items, orders and routes are 404", async () => {
    const sale = saleBodyOf();
    const cases: Array<[Record<string, unknown>, string]> = [
      [{ ...sale, items: [] }, "items"],
      [{ ...sale, id: "a/b" }, "id"],
      [{ ...sale, holdMs: -1 }, "holdMs"],
      [{ ...sale, currency: "yen" }, "currency"],
      [{ ...sale, opensAt: "tomorrow" }, "opensAt"],
      [{ ...sale, closesAt: sale.opensAt }, "closesAt"],
      [{ ...sale, gateways: ["nobody"] }, "gateways"],
      [{ ...sale, extra: 1 }, "extra"],
      [{ ...sale, items: [{ sku: "a", name: "a", unitPrice: 1.5, stock: 1 }] }, "items[0].unitPrice"],
    ];
    for (const [body, path] of cases) {
      const r = await op.post<{ errors: Array<{ path: string }> }>("/sales", body);
      expect([r.status, r.body.errors[0]?.path], JSON.stringify(body)).toEqual([422, path]);
    }
    for (const delta of [0, 1.5, "1", null])
      expect(
        (await op.post(`/sales/${saleId}/items/bag/stock`, { delta, reason: "r" }, { "idempotency-key": "x" })).status,
      ).toBe(422);
    expect((await op.patch(saleId, {})).status).toBe(422);
    expect((await op.patch(saleId, { reserving: "maybe" })).status).toBe(422);
    expect((await op.get("/orders?limit=0")).status).toBe(422);
    expect((await op.get("/orders?limit=x")).status).toBe(422);
    expect((await op.get("/orders?cursor=%00")).status).toBe(422);
    for (const r of [
      await op.get("/sales/none"),
      await op.topUp("none", 1, "k"),
      await op.topUp(saleId, 1, "k", "none"),
      await op.refund("ord_x", true),
      await call(`${api.url}/v1/sales/none`),
      await call(`${api.url}/nothing`),
      await shopper(api.url, "c").reserve(saleId, "n", [{ sku: "none", quantity: 1 }]),
    ])
      expect([r.status, r.body.code]).toEqual([404, "NOT_FOUND"]);
  });

  it("never answers 5xx and never moves stock, whatever JSON comes (fast-check)", async () => {
    const before = await stockNow();
    const paths = [`/v1/sales/${saleId}/reservations`, "/v1/reservations/rsv_1.0.x/pay", "/v1/admin/sales"];
    await assertProperty(
      fc.asyncProperty(
        fc.constantFrom(...paths),
        fc.oneof(
          fc.json(),
          fc.string(),
          fc.jsonValue().map((v) => JSON.stringify({ lines: v })),
          fc.jsonValue().map((v) => JSON.stringify({ lines: [{ sku: "bag", quantity: v }] })),
        ),
        async (path, body) => {
          // A lucky hit would be a real reservation.
          fc.pre(!/"quantity":\s*[1-9]\d?\s*[},]/.test(body));
          const admin: Record<string, string> = path.includes("admin")
            ? { authorization: `Bearer ${ADMIN_TOKEN}` }
            : {};
          const r = await post(path, body, admin);
          expect(r.status, `${path} ${body}`).toBeGreaterThanOrEqual(400);
          expect(r.status, `${path} ${body}`).toBeLessThan(500);
        },
      ),
      { numRuns: 300 },
    );
    expect(await stockNow()).toBe(before);
  });

  it("the hand-compiled check of reserve agrees with its schema", async () => {
    const sku = fc.oneof(
      fc.constantFrom("bag", "a.b_c-d", "", "a b", "x".repeat(65), "{}"),
      fc.string(),
      fc.string({ unit: "binary" }),
      fc.constantFrom("bag\u0000", "bag\ud800", "\udc00", "bag\n", "ｂａｇ", "\u202ebag"),
    );
    const quantity = fc.oneof(fc.integer({ min: -2, max: 101 }), fc.double(), fc.string(), fc.constant(null));
    const oneLine = fc.oneof(
      { weight: 5, arbitrary: fc.record({ sku, quantity }) },
      { weight: 1, arbitrary: fc.anything() },
      { weight: 1, arbitrary: fc.record({ sku, quantity, extra: fc.integer() }) },
    );
    const body = fc.oneof(
      { weight: 5, arbitrary: fc.record({ lines: fc.array(oneLine, { maxLength: 12 }) }) },
      fc.anything(),
      fc.record({ lines: fc.array(oneLine), more: fc.integer() }),
    );
    const verdict = (f: () => unknown) => {
      try {
        f();
        return true;
      } catch {
        return false;
      }
    };
    let accepted = 0;
    const good = fc.record({
      lines: fc.uniqueArray(
        fc.record({ sku: fc.stringMatching(/^[A-Za-z0-9._-]{1,64}$/), quantity: fc.integer({ min: 1, max: 99 }) }),
        {
          minLength: 1,
          maxLength: 10,
          selector: (l) => l.sku,
        },
      ),
    });
    await assertProperty(
      fc.property(fc.oneof(body, good), (b) => {
        const json = JSON.parse(JSON.stringify(b ?? null));
        const byHand = verdict(() => checkReserveBody(json));
        expect(byHand).toBe(reserveBody.safeParse(json).success);
        if (byHand) accepted++;
      }),
      { numRuns: 3000 },
    );
    if (!process.env.FC_PATH) expect(accepted).toBeGreaterThan(100);
  });
});

describe("answers", () => {
  it("of a sale carry ETag and a short Cache-Control, and 304 when nothing changed", async () => {
    const first = await call(`${api.url}/v1/sales/${saleId}`);
    expect(first.headers.get("cache-control")).toBe("public, max-age=1");
    const again = await fetch(`${api.url}/v1/sales/${saleId}`, {
      headers: { "if-none-match": first.headers.get("etag") as string },
    });
    expect(again.status).toBe(304);
    await shopper(api.url, "etag").reserve(saleId, "k");
    await until(
      "another ETag",
      async () => (await fetch(`${api.url}/v1/sales/${saleId}`)).headers.get("etag") !== first.headers.get("etag"),
    );
  });

  it("all carry X-Request-Id and headers that give a browser nothing to run", async () => {
    for (const path of ["/healthz", `/v1/sales/${saleId}`, "/nothing", "/metrics", "/openapi.json", "/docs"]) {
      const r = await fetch(`${api.url}${path}`, { headers: { "x-request-id": "mine-1" } });
      expect(r.headers.get("x-request-id"), path).toBe("mine-1");
      expect(r.headers.get("x-content-type-options")).toBe("nosniff");
      expect(r.headers.get("content-security-policy")).toContain("default-src 'none'");
    }
    expect(
      (await fetch(`${api.url}/healthz`, { headers: { "x-request-id": "<script>" } })).headers.get("x-request-id"),
    ).toMatch(/^[a-z0-9-]+$/);
  });

  it("not open yet tells when, with Retry-After and retryAfterMs; paused, closed and limit have their codes", async () => {
    const opensAt = new Date(Date.now() + 3_600_000).toISOString();
    const early = (await op.create({ opensAt })).body.id;
    const r = await shopper(api.url, "early").reserve(early, "k");
    expect(r).toMatchObject({ status: 403, body: { code: "SALE_NOT_OPEN", opensAt } });
    expect(Number(r.headers.get("retry-after"))).toBeGreaterThanOrEqual(3_590);
    expect((r.body as unknown as { retryAfterMs: number }).retryAfterMs).toBeGreaterThan(3_590_000);
    expect((await call(`${api.url}/v1/sales/${early}`)).body.status).toBe("scheduled");
    const small = (await op.create({ maxUnitsPerCustomer: 1 })).body.id;
    expect((await shopper(api.url, "c").reserve(small, "k", [{ sku: "bag", quantity: 2 }])).body.code).toBe(
      "LIMIT_REACHED",
    );
    await op.patch(small, { reserving: "off" });
    expect((await shopper(api.url, "c").reserve(small, "k")).body.code).toBe("SALE_PAUSED");
    expect((await call(`${api.url}/v1/sales/${small}`)).body.status).toBe("paused");
  });

  it("stock codes name the worst line: sold out before all held before not enough", async () => {
    const items = ["sold", "held", "few"].map((sku) => ({ sku, name: sku, unitPrice: 1, stock: 1 }));
    const id = (await op.create({ items, maxUnitsPerCustomer: 10 })).body.id;
    const buyer = shopper(api.url, "buyer");
    const sold = (await buyer.reserve(id, "a", [{ sku: "sold", quantity: 1 }])).body.id;
    await buyer.confirm(sold, { gateway: "cod" });
    const holder = (await buyer.reserve(id, "b", [{ sku: "held", quantity: 1 }])).body;
    const ask = async (...lines: Array<[string, number]>) =>
      (
        await shopper(api.url, "asks").reserve(
          id,
          "k",
          lines.map(([sku, quantity]) => ({ sku, quantity })),
        )
      ).body as unknown as Record<string, unknown>;
    expect(await ask(["few", 2])).toMatchObject({
      code: "NOT_ENOUGH_FREE",
      lines: [{ sku: "few", requested: 2, free: 1 }],
    });
    expect(await ask(["few", 2], ["held", 1])).toMatchObject({
      code: "ALL_HELD",
      nextReleaseAt: holder.expiresAt,
      lines: [{ sku: "few" }, { sku: "held", requested: 1, free: 0 }],
    });
    expect(await ask(["held", 1], ["sold", 1])).toMatchObject({ code: "SOLD_OUT" });
    const view = await until("a fresh view", async () => {
      const v = (await call<{ items: Array<{ availability: string }> }>(`${api.url}/v1/sales/${id}`)).body;
      return v.items[0]?.availability === "sold_out" && v;
    });
    expect(view.items.map((i) => i.availability)).toEqual(["sold_out", "all_held", "available"]);
  });

  it("a repeated key with the same lines is the same reservation in its present state, with other lines 422", async () => {
    const s = shopper(api.url, "repeats");
    const first = await s.reserve(saleId, "r", [{ sku: "bag", quantity: 2 }]);
    expect([first.status, first.headers.get("location")]).toEqual([201, `/v1/reservations/${first.body.id}`]);
    const again = await s.reserve(saleId, "r", [{ sku: "bag", quantity: 2 }]);
    expect([again.status, again.headers.get("idempotent-replay"), again.body.id]).toEqual([200, "true", first.body.id]);
    expect((await s.reserve(saleId, "r", [{ sku: "bag", quantity: 3 }])).body.code).toBe("IDEMPOTENCY_MISMATCH");
    await s.release(first.body.id);
    expect((await s.reserve(saleId, "r", [{ sku: "bag", quantity: 2 }])).body.status).toBe("released");
  });

  it("releasing a confirmed reservation is 409 ALREADY_CONFIRMED; a repeated confirm answers 200", async () => {
    const s = shopper(api.url, "confirmed");
    const { id } = (await s.reserve(saleId, "k")).body;
    await s.confirm(id, { gateway: "cod" });
    expect((await s.release(id)).body.code).toBe("ALREADY_CONFIRMED");
    expect((await s.confirm(id, { gateway: "cod" })).status).toBe(200);
  });

  it("paying by its first name, /confirm, is the same: one payment, whichever is called, and the same answers at both doors", async () => {
    const s = shopper(api.url, "alias");
    const reserve = async (key: string) => (await s.reserve(saleId, key)).body.id;
    const routes = ["pay", "confirm"] as const;
    /** What does not change from one moment, one request or one reservation to the next. */
    const lasting = ({ status, body }: { status: number; body: object }) => {
      const { id, serverTime, requestId, orderId, retryAfterMs, ...rest } = body as Record<string, unknown>;
      return { status, body: rest };
    };
    const both = async (answer: (route: (typeof routes)[number]) => ReturnType<typeof s.confirm>) => {
      const [pay, confirm] = [await answer("pay"), await answer("confirm")];
      expect(lasting(confirm)).toEqual(lasting(pay));
      return [pay, confirm] as const;
    };
    const [id, other] = [await reserve("by-pay"), await reserve("by-confirm")];
    const idOf = { pay: id, confirm: other };
    expect((await both((route) => s.confirm(idOf[route], {}, { route })))[0].status).toBe(422);
    const recorded = async (route: (typeof routes)[number]) => {
      const paid = await s.confirm(idOf[route], { gateway: "cod" }, { route });
      expect(paid.body.status).toBe("confirmed");
      await until("the order", async () => (await s.read(idOf[route])).body.recorded);
      return s.confirm(idOf[route], { gateway: "cod" }, { route });
    };
    expect((await both(recorded))[0].status).toBe(200);
    // Paid by one name, asked for by the other: what is there is joined.
    const crossed = await both((route) => s.confirm(id, { gateway: "cod" }, { route }));
    expect(crossed[1].body.orderId).toBe(crossed[0].body.orderId);
    expect(await api.service.ctx.db.select().from(payments).where(eq(payments.reservationId, id))).toHaveLength(1);
    // Both have node's own door; the answer to a caller who has gone is thrown away.
    const takes = (path: string) =>
      api.service.fastPath(
        { method: "POST", url: path, headers: {} } as IncomingMessage,
        { destroyed: true } as ServerResponse,
      );
    expect(routes.map((route) => takes(`/v1/reservations/x/${route}`))).toEqual([true, true]);
    expect(takes("/v1/reservations/x/other")).toBe(false);
  });

  it("a genuine id that no store knows is 410 HOLD_LOST", async () => {
    const { ids, sales } = api.service.ctx;
    const sale = await sales.get(saleId);
    const id = ids.reservationId(sale?.no ?? 0, "lost", ids.reservationKey(sale?.no ?? 0, "lost", "never-made"));
    for (const r of [
      await shopper(api.url, "lost").read(id),
      await shopper(api.url, "lost").confirm(id),
      await shopper(api.url, "lost").release(id),
    ])
      expect([r.status, r.body.code]).toEqual([410, "HOLD_LOST"]);
  });

  it("one customer's flood is 429 without harm to others", async () => {
    const limited = await world.start({ CUSTOMER_RATE_PER_S: "5", ROLE: "api" });
    const replies = await inParallel(
      30,
      Array.from({ length: 30 }, () => () => shopper(limited.url, "flood").list(saleId)),
    );
    expect(replies.filter((r) => r.body.code === "RATE_LIMITED").length).toBeGreaterThanOrEqual(15);
    expect((await shopper(limited.url, "calm").list(saleId)).status).toBe(200);
    await limited.close();
  });

  it("a full line for payment is 503 before anything is pinned; the hold stands", async () => {
    const narrow = await world.start({ GATEWAY_LINE_MAX: "1", GATEWAY_IN_FLIGHT_MAX: "1", ROLE: "api" });
    const gated = (await op.create({ items: [{ sku: "bag", name: "b", unitPrice: 1, stock: 20 }] })).body.id;
    const holds = await inParallel(
      10,
      Array.from({ length: 10 }, (_, i) => async () => ({
        s: shopper(narrow.url, `line${i}`),
        id: (await shopper(narrow.url, `line${i}`).reserve(gated, "k")).body.id,
      })),
    );
    const replies = await Promise.all(holds.map(({ s, id }) => s.confirm(id, { token: "tok_ok" }, { waitS: 0 })));
    const full = replies.findIndex((r) => r.body.code === "PAYMENT_LINE_FULL");
    expect(full).toBeGreaterThanOrEqual(0);
    expect(replies[full]?.headers.get("retry-after")).toBeTruthy();
    expect((await holds[full]?.s.read(holds[full]?.id as string))?.body.status).toBe("held");
    // A full line does not stop somebody who has paid.
    const paid = replies.findIndex((r) => r.status === 202);
    await until(
      "a confirmed one",
      async () => (await holds[paid]?.s.read(holds[paid]?.id as string))?.body.status === "confirmed",
    );
    expect(
      (await Promise.all(Array.from({ length: 5 }, () => holds[paid]?.s.confirm(holds[paid]?.id as string)))).map(
        (r) => r?.status,
      ),
    ).toEqual(Array(5).fill(200));
    await narrow.close();
  });

  it("Prefer: wait ends after that time with 202, and events stream each change until the end", async () => {
    const s = shopper(api.url, "events");
    const { id } = (await s.reserve(saleId, "k")).body;
    const stream = fetch(`${api.url}/v1/reservations/${id}/events`, {
      headers: { authorization: s.authorization },
    }).then((r) => r.text());
    const r = await s.confirm(id, { token: "tok_3ds" }, { waitS: 30 });
    expect(r).toMatchObject({ status: 202, body: { payment: { status: "action_required" } } });
    await fetch(r.body.payment?.actionUrl as string, {
      method: "POST",
      body: new URLSearchParams({ answer: "approve" }),
    });
    const states = [...(await stream).matchAll(/^data: (.*)$/gm)].map(
      (m) => JSON.parse(m[1] as string) as { status: string; recorded?: boolean },
    );
    expect(states[0]?.status).toBe("held");
    expect(states.at(-1)).toMatchObject({ status: "confirmed", recorded: true });
    expect(states.some((x) => x.status === "paying")).toBe(true);
  });

  it("creating a sale again answers 200 for the same body and 409 SALE_EXISTS for another", async () => {
    const body = saleBodyOf();
    expect((await op.post("/sales", body)).status).toBe(201);
    expect((await op.post("/sales", Object.fromEntries(Object.entries(body).reverse()))).status).toBe(200);
    expect((await op.post("/sales", { ...body, name: "else" })).body.code).toBe("SALE_EXISTS");
  });

  it("the audit is JSON, and as text/html a certificate without scripts whose names are harmless", async () => {
    const id = (await op.create({ name: "<script>alert(1)</script>" })).body.id;
    const page = await op.get<string>(`/sales/${id}/audit`, { accept: "text/html" });
    expect(String(page.body)).toContain("The books balance.");
    expect(String(page.body)).not.toContain("<script");
  });

  it("CORS is off unless origins are named, and then only for those", async () => {
    expect(
      (await fetch(`${api.url}/healthz`, { headers: { origin: "https://shop.example" } })).headers.get(
        "access-control-allow-origin",
      ),
    ).toBeNull();
    const open = await world.start({ CORS_ORIGINS: "https://shop.example", ROLE: "api" });
    const from = async (origin: string) =>
      (await fetch(`${open.url}/healthz`, { headers: { origin } })).headers.get("access-control-allow-origin");
    expect([await from("https://shop.example"), await from("https://evil.example")]).toEqual([
      "https://shop.example",
      null,
    ]);
    expect(
      (
        await fetch(`${open.url}/v1/sales/x/reservations`, {
          method: "OPTIONS",
          headers: { origin: "https://shop.example" },
        })
      ).status,
    ).toBe(204);
    await open.close();
  });

  it("no e-mail, name, token or address shows in logs, also not in those of a failing database", async () => {
    const lines: string[] = [];
    const log = makeLog("trace", { write: (line) => lines.push(line) });
    const { db } = api.service.ctx;
    const wrong = {
      reference: "canary",
      saleId,
      reservationId: "r",
      reservationKey: "k",
      customerId: "c",
      gateway: "sandbox",
      token: "tok_canary",
      tokenDigest: "d",
    };
    const row = {
      ...wrong,
      amount: -1,
      currency: "JPY",
      lines: [],
      contact: { email: "canary@example.jp", name: "カナリア" },
      shipTo: { address: "canary street" },
      language: "en",
      state: "queued" as const,
    };
    const error = await db
      .insert(payments)
      .values(row)
      .catch((e) => e);
    log.error({ err: error, contact: row.contact, payment: row, token: "tok_canary" }, "failed");
    expect(lines.join("")).toContain("payment_amount");
    for (const secret of ["canary@", "カナリア", "tok_canary", "canary street"])
      expect(lines.join("")).not.toContain(secret);
  });

  it("no e-mail, token or address shows in metrics", async () => {
    const text = await (await fetch(`${api.url}/metrics`)).text();
    expect(text).toContain("fukubukuro_http_requests_total");
    for (const secret of ["hana@example.jp", ADMIN_TOKEN, SECRET]) expect(text).not.toContain(secret);
  });

  it("readyz is 503 while draining or while a store is away; healthz asks nobody", async () => {
    const one = await world.start({ ROLE: "api" });
    expect((await fetch(`${one.url}/readyz`)).status).toBe(200);
    one.service.drain();
    expect((await fetch(`${one.url}/readyz`)).status).toBe(503);
    const alive = await fetch(`${one.url}/healthz`);
    expect([alive.status, alive.headers.get("connection")]).toEqual([200, "close"]);
    await one.close();
  });

  it("every code of the problem table is either answered somewhere above or an outage", () => {
    const files = ["contract", "openapi", "sale", "race"];
    const source = files.map((f) => readFileSync(new URL(`./${f}.test.ts`, import.meta.url), "utf8")).join("");
    const outages: ProblemCode[] = ["INTERNAL_ERROR", "OVERLOADED"];
    for (const code of Object.keys(PROBLEMS) as ProblemCode[])
      if (!outages.includes(code)) expect(source, code).toContain(`"${code}"`);
  });
});
