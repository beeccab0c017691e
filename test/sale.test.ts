/** Whole sales over HTTP, on real parts: what shoppers and operators see from the press of the button to the mail. */
import { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { inParallel, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();

const newSale = async (sale: Parameters<typeof op.create>[0] = {}) => (await op.create(sale)).body.id;
const held = async (saleId: string, customer: string, key = "k") => {
  const s = shopper(api.url, customer);
  const r = await s.reserve(saleId, key);
  expect(r.status).toBe(201);
  return { s, id: r.body.id };
};
const booksBalance = (saleId: string) =>
  until("the books to balance and come to rest", async () => {
    const a = await op.audit(saleId);
    return a.ok && a.open.paying === 0 && a.open.journalLag === 0 && a;
  });

describe("a purchase", () => {
  it("goes from hold to charge to recorded order to one mail, and the books balance", async () => {
    const saleId = await newSale({ shippingFee: 800, language: "ja" });
    const { s, id } = await held(saleId, "buyer");
    const paid = await s.confirm(
      id,
      { token: "tok_ok" },
      { more: { shipTo: { postalCode: "150-0001", address: "東京都渋谷区" } } },
    );
    expect(paid.status).toBe(200);
    expect(paid.body).toMatchObject({ status: "confirmed", amount: 10_800 });
    const orderId = paid.body.orderId as string;
    const order = await until("the order", async () => {
      const r = await s.order(orderId);
      return r.status === 200 && r;
    });
    expect(order.body).toMatchObject({
      id: orderId,
      amount: 10_800,
      currency: "JPY",
      shipTo: { postalCode: "150-0001" },
      contact: { email: "hana@example.jp" },
    });
    const mails = await until("the mail", async () => {
      const found = (await world.mailbox.list()).filter((m) => m.subject.includes(orderId));
      return found.length > 0 && found;
    });
    expect(mails).toHaveLength(1);
    expect(mails[0]).toMatchObject({ to: "hana@example.jp" });
    expect(mails[0]?.text).toMatch(/ご注文番号/);
    expect((await s.read(id)).body).toMatchObject({ status: "confirmed", recorded: true });
    const audit = await until("the mail to be marked sent", async () => {
      const a = await op.audit(saleId);
      return a.mails.sent === 1 && a;
    });
    expect(audit).toMatchObject({
      ok: true,
      items: [{ granted: 10, free: 9, held: 0, claimed: 1, sold: 1, difference: 0 }],
      charges: { captured: 1 },
      orders: { recorded: 1 },
    });
  });

  it("by cash on delivery makes an order without an outside call", async () => {
    const saleId = await newSale();
    const charges = (await world.sandbox("/stats")).charges;
    const { s, id } = await held(saleId, "cod-buyer");
    expect((await s.confirm(id, { gateway: "cod" })).body).toMatchObject({ status: "confirmed" });
    expect(await booksBalance(saleId)).toMatchObject({
      charges: { captured: 0 },
      orders: { recorded: 1, withoutCharge: 0 },
    });
    expect((await world.sandbox("/stats")).charges).toBe(charges);
  });

  it("of 500 shoppers at 64 in parallel over 100 units ends with exactly 100 charges, orders and mails, never more than 4 calls in flight", async () => {
    const saleId = await newSale({ items: [{ sku: "bag", name: "Rush bag", unitPrice: 5_000, stock: 100 }] });
    const outcomes = await inParallel(
      64,
      Array.from({ length: 500 }, (_, i) => async () => {
        const s = shopper(api.url, `rush-${i}`);
        const r = await s.reserve(saleId, "k");
        if (r.status !== 201) return r.body.code;
        const paid = await s.confirm(
          r.body.id,
          { token: "tok_ok" },
          { waitS: 30, more: { contact: { email: `rush-${i}@example.jp`, name: "Rush" } } },
        );
        return paid.status === 200 ? "confirmed" : `${paid.status} ${paid.body.code ?? paid.body.status}`;
      }),
    );
    const count = (word: string) => outcomes.filter((o) => o === word).length;
    expect(count("confirmed")).toBe(100);
    expect(count("SOLD_OUT") + count("ALL_HELD")).toBe(400);
    const audit = await until("100 mails", async () => {
      const a = await op.audit(saleId);
      return a.mails.sent === 100 && a;
    });
    expect(audit).toMatchObject({
      ok: true,
      items: [{ granted: 100, free: 0, held: 0, claimed: 100, sold: 100 }],
      charges: { captured: 100 },
      orders: { recorded: 100 },
    });
    const mails = (await world.mailbox.list(2000)).filter((m) => m.to.startsWith("rush-"));
    expect(new Set(mails.map((m) => m.to)).size).toBe(100);
    expect(mails).toHaveLength(100);
    expect((await world.sandbox("/stats")).inFlightMax).toBeLessThanOrEqual(4);
    expect((await call200(`/v1/sales/${saleId}`)).items[0]).toMatchObject({ availability: "sold_out", free: 0 });
  });
});

const call200 = async (path: string) =>
  (await fetch(`${api.url}${path}`)).json() as Promise<{
    items: Array<Record<string, unknown>>;
    status: string;
    nextReleaseAt: string | null;
  }>;

describe("a payment that does not simply succeed", () => {
  it("when declined gives the hold back with time to try again; the same token is answered the same, another token pays", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "declined");
    const first = await s.confirm(id, { token: "tok_declined" });
    expect(first).toMatchObject({
      status: 402,
      body: {
        code: "PAYMENT_DECLINED",
        declineCode: "card_declined",
        reservation: { status: "held", payment: { status: "declined" } },
      },
    });
    expect((await s.confirm(id, { token: "tok_declined" })).body).toMatchObject({ code: "PAYMENT_DECLINED" });
    expect((await s.read(id)).body).toMatchObject({
      status: "held",
      payment: { status: "declined", declineCode: "card_declined" },
    });
    expect((await s.confirm(id, { token: "tok_ok" })).status).toBe(200);
    expect(await booksBalance(saleId)).toMatchObject({ charges: { captured: 1, twice: 0 }, orders: { recorded: 1 } });
  });

  it("with 3-D Secure sends the shopper to actionUrl without a permit, and is confirmed after the approval", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "3ds");
    const r = await s.confirm(id, { token: "tok_3ds" }, { more: { returnUrl: "https://shop.example/back" } });
    expect(r).toMatchObject({ status: 202, body: { status: "paying", payment: { status: "action_required" } } });
    expect(r.body.expiresAt).toBeUndefined();
    expect((await s.release(id)).body.code).toBe("PAYMENT_IN_PROGRESS");
    const actionUrl = r.body.payment?.actionUrl as string;
    const back = await fetch(actionUrl, {
      method: "POST",
      body: new URLSearchParams({ answer: "approve" }),
      redirect: "manual",
    });
    expect(back.headers.get("location")).toBe("https://shop.example/back");
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await booksBalance(saleId)).toMatchObject({ charges: { captured: 1 } });
  });

  it("with 3-D Secure refused gives the hold back", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "3ds-refused");
    const r = await s.confirm(id, { token: "tok_3ds" });
    await fetch(r.body.payment?.actionUrl as string, {
      method: "POST",
      body: new URLSearchParams({ answer: "refuse" }),
    });
    await until("held again", async () => (await s.read(id)).body.status === "held");
    expect((await s.read(id)).body.payment).toMatchObject({ declineCode: "authentication_failed" });
  });

  it("that was charged but never answered stays paying, is found by a look-up, and makes one order", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "lost-answer");
    expect((await s.confirm(id, { token: "tok_timeout_after_charge" }, { waitS: 1 })).status).toBe(202);
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await booksBalance(saleId)).toMatchObject({ charges: { captured: 1, twice: 0 }, orders: { recorded: 1 } });
  });

  it("that failed on the gateway's side at first is sent again under the same reference and charged once", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "error-then-ok");
    await s.confirm(id, { token: "tok_error_then_ok" }, { waitS: 0 });
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await booksBalance(saleId)).toMatchObject({ charges: { captured: 1 }, orders: { recorded: 1 } });
  });

  it("that the gateway never heard of is closed at the gateway before the hold is given back", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "never-arrives");
    const paying = await s.confirm(id, { token: "tok_timeout_before_charge" }, { waitS: 0 });
    const reference = String(paying.body.payment?.id).slice(4);
    await until("held again", async () => (await s.read(id)).body.status === "held", 40_000);
    const late = await fetch(`${world.gateway.url}/charges`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": reference },
      body: JSON.stringify({ amount: 10_000, currency: "JPY", token: "tok_ok", reference, reservationId: id }),
    });
    expect(late.status).toBe(410);
    expect((await s.confirm(id, { token: "tok_ok" })).status).toBe(200);
    expect(await booksBalance(saleId)).toMatchObject({ charges: { captured: 1, withoutOrder: 0 } });
  });
});

describe("a hold", () => {
  it("that is not paid is reservable again within a second of its deadline, and its owner is told it expired", async () => {
    const saleId = await newSale({
      holdMs: 1_000,
      items: [{ sku: "bag", name: "Last bag", unitPrice: 100, stock: 1 }],
    });
    const { s, id } = await held(saleId, "sleeper");
    const deadline = Date.parse((await s.read(id)).body.expiresAt as string);
    expect((await shopper(api.url, "next").reserve(saleId, "k")).body).toMatchObject({
      code: "ALL_HELD",
      lines: [{ sku: "bag", requested: 1, free: 0 }],
    });
    await until("reservable", async () => (await shopper(api.url, "next").reserve(saleId, "k")).status === 201);
    expect(Date.now() - deadline).toBeLessThan(1_000);
    expect((await s.read(id)).body.status).toBe("expired");
    expect((await s.confirm(id)).body.code).toBe("RESERVATION_EXPIRED");
    expect((await s.release(id)).body.code).toBe("RESERVATION_EXPIRED");
  });

  it("given back is free at once, also when given back twice", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "changes-mind");
    expect((await s.release(id)).body.status).toBe("released");
    expect((await s.release(id)).status).toBe(200);
    expect((await s.confirm(id)).body.code).toBe("RESERVATION_RELEASED");
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 10, held: 0 });
  });

  it("keeps its time while payments are paused, and every live hold can be extended", async () => {
    const saleId = await newSale({ holdMs: 2_000 });
    const { s, id } = await held(saleId, "paused");
    const before = Date.parse((await s.read(id)).body.expiresAt as string);
    await op.patch(saleId, { paying: "off" });
    expect((await s.confirm(id)).body.code).toBe("SALE_PAUSED");
    await until("the first deadline to pass", () => Date.now() > before + 300);
    expect((await s.read(id)).body.status).toBe("held");
    expect((await op.patch(saleId, { paying: "on", extendHoldsMs: 60_000 })).status).toBe(200);
    expect(Date.parse((await s.read(id)).body.expiresAt as string)).toBeGreaterThan(before + 60_000);
    expect((await s.confirm(id)).status).toBe(200);
  });

  it("is found again by its owner after a closed tab", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "came-back", "first");
    const second = await s.reserve(saleId, "second");
    expect((await s.list(saleId)).body.reservations.map((r) => r.id)).toEqual([second.body.id, id]);
  });
});

describe("an operator", () => {
  it("tops up once per key, takes free units away, and never those that are held or sold", async () => {
    const saleId = await newSale();
    expect((await op.topUp(saleId, 5, "a")).body).toMatchObject({ granted: 15, free: 15, replayed: false });
    expect((await op.topUp(saleId, 5, "a")).body).toMatchObject({ granted: 15, free: 15, replayed: true });
    expect((await op.topUp(saleId, 6, "a")).body.code).toBe("IDEMPOTENCY_MISMATCH");
    await held(saleId, "holder");
    expect((await op.topUp(saleId, -15, "b")).body).toMatchObject({ code: "BELOW_COMMITTED", free: 14 });
    expect((await op.topUp(saleId, -14, "c")).body).toMatchObject({ granted: 1, free: 0, held: 1 });
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ granted: 1, free: 0, held: 1 }] });
  });

  it("closes a sale: reserving ends, holds live on and can be paid", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "in-time");
    await op.patch(saleId, { closesAt: new Date(Date.now() - 1000).toISOString() });
    expect((await shopper(api.url, "late").reserve(saleId, "k")).body.code).toBe("SALE_CLOSED");
    expect((await s.confirm(id)).status).toBe(200);
  });

  it("refunds an order: units come back on sale only after the gateway has said refunded, and the customer may buy again", async () => {
    const saleId = await newSale({ maxUnitsPerCustomer: 1 });
    const { s, id } = await held(saleId, "returns");
    const orderId = (await s.confirm(id)).body.orderId as string;
    await until("recorded", async () => (await s.order(orderId)).status === 200);
    expect((await s.reserve(saleId, "more")).body.code).toBe("LIMIT_REACHED");
    expect((await op.refund(orderId, true)).status).toBe(202);
    expect((await op.refund(orderId, true)).status).toBe(202);
    await until("refunded", async () => (await s.order(orderId)).body.status === "refunded");
    const audit = await until("the restocked unit", async () => {
      const a = await op.audit(saleId);
      return a.ok && a.items[0]?.free === 10 && a;
    });
    expect(audit).toMatchObject({ charges: { captured: 0, refunded: 1 }, items: [{ free: 10, claimed: 0, sold: 0 }] });
    expect((await s.reserve(saleId, "more")).status).toBe(201);
  });

  it("refunds without restock: the unit stays claimed", async () => {
    const saleId = await newSale();
    const { s, id } = await held(saleId, "keeps");
    const orderId = (await s.confirm(id, { gateway: "cod" })).body.orderId as string;
    await until("recorded", async () => (await s.order(orderId)).status === 200);
    await op.refund(orderId, false);
    await until("refunded", async () => (await s.order(orderId)).body.status === "refunded");
    expect(await booksBalance(saleId)).toMatchObject({ items: [{ free: 9, claimed: 1, sold: 0 }] });
    await op.topUp(saleId, 4, "more");
    // The certificate's line: opening stock + top-ups = sold + refunded and not put back + in payment + held + free.
    const whole = { opening: 10, toppedUp: 4, sold: 0, notPutBack: 1, putBack: 0, inPayment: 0, held: 0, free: 13 };
    expect(await booksBalance(saleId)).toMatchObject({ items: [whole] });
  });

  it("reads orders as JSON page by page and as CSV whose cells cannot be formulas", async () => {
    const saleId = await newSale();
    for (const name of ["=cmd()", "b", "c"]) {
      const { s, id } = await held(saleId, `csv-${name}`);
      expect(
        (await s.confirm(id, { gateway: "cod" }, { more: { contact: { email: "x@example.jp", name } } })).status,
      ).toBe(200);
    }
    type Page = { orders: Array<{ id: string }>; nextCursor: string | null };
    const first = await until("three orders", async () => {
      const r = await op.get<Page>(`/orders?saleId=${saleId}&limit=2`);
      return r.body.nextCursor !== null && r.body;
    });
    const second = (await op.get<Page>(`/orders?saleId=${saleId}&limit=2&cursor=${first.nextCursor}`)).body;
    expect(first.orders).toHaveLength(2);
    expect(new Set([...first.orders, ...second.orders].map((o) => o.id)).size).toBe(3);
    const csv = new TextDecoder("utf-8", { ignoreBOM: true }).decode(
      await (
        await fetch(`${api.url}/v1/admin/orders?saleId=${saleId}`, {
          headers: { authorization: "Bearer admin-token-of-the-tests", accept: "text/csv" },
        })
      ).arrayBuffer(),
    );
    expect(csv.startsWith("\uFEFForder_id,")).toBe(true);
    expect(csv).toContain("'=cmd()");
    expect(csv.trim().split("\r\n")).toHaveLength(4);
  });
});

describe("a sale's names and texts", () => {
  it("can be corrected while it runs; an order keeps the names it was made under", async () => {
    const terms = { delivery: "In January" };
    const settings = { shippingFee: 800, terms };
    const saleId = await newSale(settings);
    const buy = async (customer: string) => {
      const { s, id } = await held(saleId, customer);
      const orderId = (await s.confirm(id, { gateway: "cod" })).body.orderId as string;
      await until("recorded", async () => (await s.order(orderId)).status === 200);
      return async () => ((await s.order(orderId)).body as { lines?: Array<{ name: string }> }).lines?.[0]?.name;
    };
    const first = await buy("before");
    const before = await first();
    const shop = { name: "A shop", invoiceNumber: "T1234567890123" };
    expect((await op.patch(saleId, { name: "New Year", shop, items: [{ sku: "bag", name: "Blue bag" }] })).status).toBe(
      200,
    );
    expect(await op.sale(saleId)).toMatchObject({ name: "New Year" });
    const second = await buy("after");
    expect([await first(), await second()]).toEqual([before, "Blue bag"]);
    // What was not named stays, and the stock did not move.
    expect((await api.service.ctx.sales.get(saleId))?.details).toMatchObject({ shop, terms });
    expect(await booksBalance(saleId)).toMatchObject({ items: [{ granted: 10, free: 8, sold: 2 }] });
    const refused = await op.patch(saleId, { name: "Never", items: [{ sku: "none", name: "None" }] });
    expect(refused.status).toBe(422);
    expect(await op.sale(saleId)).toMatchObject({ name: "New Year" });
  });
});

describe("a mail", () => {
  it("is sent although the process stays busy: putting it off has an end", async () => {
    const saleId = await newSale();
    let busy = true;
    const keepBusy = () => {
      for (const until = performance.now() + 20; performance.now() < until; );
      if (busy) setImmediate(keepBusy);
    };
    const { s, id } = await held(saleId, "patient");
    keepBusy();
    try {
      const orderId = (await s.confirm(id, { gateway: "cod" })).body.orderId as string;
      await until(
        "the mail",
        async () => (await world.mailbox.list()).some((m) => m.subject.includes(orderId)),
        40_000,
      );
    } finally {
      busy = false;
    }
  });
});

describe("a sale that is long over", () => {
  it("costs the stores next to nothing, however many there are, while an open one is looked after all the time", async () => {
    const days = (n: number) => new Date(Date.now() + n * 86_400_000).toISOString();
    const over = await newSale({ opensAt: days(-9), closesAt: days(-3) });
    const open = await newSale();
    const calls = { [over]: 0, [open]: 0 };
    const client = new Redis(world.redis.url);
    const monitor = await client.monitor();
    try {
      monitor.on("monitor", (_time: string, args: string[]) => {
        for (const id of [over, open]) if (args.some((a) => a.includes(id))) calls[id] = (calls[id] ?? 0) + 1;
      });
      await until("an open sale to be visited again and again", async () => (calls[open] ?? 0) > 100);
    } finally {
      monitor.disconnect();
      client.disconnect();
    }
    // One visit of every loop at most: they come round to it now and then.
    expect(calls[over]).toBeLessThan((calls[open] ?? 0) / 4);
  });
});
