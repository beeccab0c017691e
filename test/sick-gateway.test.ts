/**
 * A sick gateway does not take the shop down: calls that end give their permits back, and every odd answer ends in a
 * state with a name.
 */
import { eq, sql } from "drizzle-orm";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { findPayment } from "../src/payments/rows.ts";
import { ledgerOf } from "../src/recover/ledger.ts";
import { lookUpOnce } from "../src/recover/open-payments.ts";
import { reconcileOnce } from "../src/recover/reconcile.ts";
import { refundOnce } from "../src/recover/refunds.ts";
import { gates, payments, strayCharges } from "../src/stores/schema.ts";
import { type Odd, type SickGateway, startSickGateway } from "./sick-gateway.ts";
import { call, makeWorld, operator, type Running, shopper, until, type World } from "./support.ts";

/** Leases longer than any test: a permit that is not given back is seen. */
const LONG = { GATEWAY_TIMEOUT_MS: "60000", GATEWAY_OVERRUN_MS: "1000", GATEWAY_LEASE_MS: "600000" };
let world: World;
let sick: SickGateway;
let api: Running;
let op: ReturnType<typeof operator>;
beforeAll(async () => {
  world = await makeWorld();
  sick = await startSickGateway();
  api = await world.start({ ...LONG, SANDBOX_GATEWAY_URL: sick.url });
  op = operator(api.url);
});
afterAll(async () => {
  await world.close();
  await sick.close();
});
beforeEach(() => {
  sick.behave = {};
  sick.latencyMs = {};
  sick.pageMax = 500;
  sick.foreign = [];
});

const ctx = () => api.service.ctx;
const bags = (stock: number) => [{ sku: "bag", name: "Bag", unitPrice: 1000, stock }];
const gate = () => ctx().scripts.gateView("sandbox");
const noPermits = () => until("no permit to be out", async () => (await gate()).inFlight === 0);

async function paid(saleId: string, who: string, token = "tok_ok", waitS = 0) {
  const s = shopper(api.url, who);
  const { id } = (await s.reserve(saleId, "k")).body;
  const r = await s.confirm(id, { token }, { waitS });
  const reference = String(r.body.payment?.id ?? `ord_${(r.body.orderId ?? "").slice(4)}`).slice(4);
  return { s, id, reference, r };
}
const stateOf = async (reference: string) => (await findPayment(ctx().db, reference))?.state;
const settle = (reference: string, action: string, more: Record<string, unknown> = {}) =>
  op.post<{ state: string; settled: unknown }>(`/payments/${reference}/settle`, { action, reason: "looked", ...more });
const waiting = async (saleId: string) =>
  (
    await op.get<{ payments: Array<{ reference: string; why: string; actions: string[] }> }>(
      `/payments?saleId=${saleId}&attention=true`,
    )
  ).body.payments;
/** As if the trouble had lasted for a while: what tells and what backs off hangs on that alone. */
const age = (reference: string, by: string) =>
  ctx()
    .db.update(payments)
    .set({ troubledSince: sql`now() - ${by}::interval`, checkAt: sql`now()` })
    .where(eq(payments.reference, reference));

describe("an answer, whatever it says, ends the call and gives its permit back", () => {
  const cases: Array<[string, Odd]> = [
    ["422", { status: 422, body: { error: "no" } }],
    ["500", { status: 500, body: { error: "no" } }],
    ["502 of a proxy", { status: 502, body: "<html>bad gateway</html>" }],
    ["HTML with 200", { status: 200, body: "<html>welcome</html>" }],
    ["an empty 200", { status: 200, body: "" }],
    ["a status we do not know", { status: 200, body: { reference: "X", status: "sleeping" } }],
    ["a redirect", { status: 302, body: "" }],
  ];
  it.each(cases)(
    "%s to a charge ends the call, moves no money in our books, and the look-up ends it",
    async (_, odd) => {
      const saleId = (await op.create({ items: bags(1) })).body.id;
      sick.behave.charge = ({ n }) => (n === 1 ? odd : undefined);
      sick.behave.lookUp = () => odd;
      const { s, id, reference } = await paid(saleId, "c");
      await until("unknown", async () => (await stateOf(reference)) === "unknown");
      await noPermits();
      expect((await op.sale(saleId)).items[0]).toMatchObject({ claimed: 1 });
      // The gateway had done it after all.
      sick.charges.set(reference, {
        id: "ch",
        reference,
        reservationId: id,
        status: "captured",
        amount: 1000,
        currency: "JPY",
      });
      sick.behave = {};
      await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
      expect((await findPayment(ctx().db, reference))?.attention).toBeNull();
      await noPermits();
    },
  );

  it("504, behind which the call may go on, keeps it, and the gate says that it is kept", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    sick.behave.charge = () => ({ status: 504, body: "timeout" });
    const { reference } = await paid(saleId, "c504");
    await until("unknown", async () => (await stateOf(reference)) === "unknown");
    await until("a permit to be kept", async () => (await gate()).permits.kept === 1);
    const shown = (
      await op.get<{ gates: Array<{ gateway: string; permits: Record<string, number> }> }>(`/sales/${saleId}`)
    ).body.gates;
    expect(shown.find((g) => g.gateway === "sandbox")?.permits).toMatchObject({ kept: 1, charge: 0 });
    await ctx().redis.client.del("fb:{gate-sandbox}:permits");
  });

  it("a refund refused with 422 gives its permit back, is told to a person at once, is asked for ever more rarely, and ends when the gateway takes it", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const { reference } = await paid(saleId, "refused", "tok_ok", 20);
    sick.behave.refund = () => ({ status: 422, body: { error: "not refundable" } });
    await until("the order", async () => (await op.refund(`ord_${reference}`, true)).status === 202);
    const [one] = await until("the list", async () => {
      const list = await waiting(saleId);
      return list.length === 1 && list;
    });
    expect(one).toMatchObject({ reference, actions: ["refund", "not_charged"] });
    expect(one?.why).toContain("422");
    await noPermits();
    expect((await op.audit(saleId)).open).toMatchObject({ refunding: 1, attention: 1 });
    await age(reference, "8 hours");
    const before = sick.count("refund");
    await refundOnce(ctx());
    await until("it to be asked for again", async () => sick.count("refund") > before);
    await until("hours until the next", async () => {
      const p = await findPayment(ctx().db, reference);
      return (p?.checkAt?.getTime() ?? 0) - Date.now() > 3_600_000;
    });
    sick.behave.refund = undefined;
    expect((await settle(reference, "refund")).status).toBe(200);
    await until("refunded", async () => (await stateOf(reference)) === "refunded");
    expect(await waiting(saleId)).toEqual([]);
    expect((await op.audit(saleId)).attention).toEqual([]);
  });
});

describe("the calls of a kind", () => {
  it("refunds run side by side, and together with look-ups never take more than their share while charges wait", async () => {
    const saleId = (await op.create({ items: bags(60), maxUnitsPerCustomer: 1 })).body.id;
    const refunded = await Promise.all(Array.from({ length: 12 }, (_, i) => paid(saleId, `r${i}`, "tok_ok", 20)));
    sick.latencyMs = { charge: 60, refund: 120 };
    const waitingCharges = Array.from({ length: 40 }, (_, i) => paid(saleId, `w${i}`));
    await Promise.all(waitingCharges);
    await Promise.all(refunded.map(({ reference }) => op.refund(`ord_${reference}`, true)));
    let most = 0;
    await until("the line to be empty", async () => {
      const { permits, line } = await gate();
      if (line > 0) most = Math.max(most, permits.refund + permits.look + permits.list);
      return line === 0;
    });
    expect(most).toBeLessThanOrEqual(1);
    await until("all refunded", async () => (await op.sale(saleId)).items[0]?.sold === 40);
    // Nobody waits: then they may have all.
    sick.latencyMs.refund = 400;
    const later = await Promise.all(waitingCharges);
    await Promise.all(later.slice(0, 12).map(({ reference }) => op.refund(`ord_${reference}`, true)));
    await until("the others refunded", async () => (await op.sale(saleId)).items[0]?.sold === 28);
    expect(sick.most("refund")).toBeGreaterThan(1);
    expect(sick.inFlightMax()).toBeLessThanOrEqual(4);
    await noPermits();
  });

  it("a shopper at the bank's page is looked up seldom, and at once when he asks about his reservation again", async () => {
    const saleId = (await op.create({ items: bags(30), maxUnitsPerCustomer: 1 })).body.id;
    const all = await Promise.all(Array.from({ length: 20 }, (_, i) => paid(saleId, `bank${i}`, "tok_3ds", 20)));
    const rows = await ctx().db.select().from(payments).where(eq(payments.saleId, saleId));
    expect(rows.map((p) => p.state)).toEqual(rows.map(() => "action_required"));
    for (const p of rows) expect((p.checkAt?.getTime() ?? 0) - Date.now()).toBeGreaterThan(25_000);
    const [back, ...others] = all as [(typeof all)[number], ...typeof all];
    const stillAway = new Set(others.map((o) => o.reference));
    const looked = () => sick.calls.filter((c) => c.kind === "lookUp" && stillAway.has(c.reference)).length;
    const before = looked();
    (sick.charges.get(back.reference) as { status: string }).status = "captured";
    await until("confirmed", async () => (await back.s.read(back.id)).body.status === "confirmed");
    expect(looked()).toBe(before);
  });
});

async function wrongAmount(who: string) {
  const saleId = (await op.create({ items: bags(1) })).body.id;
  sick.behave.charge = ({ reference }) => {
    const body = { id: "c", reference, reservationId: "", status: "captured", amount: 700, currency: "JPY" };
    sick.charges.set(reference, body);
    return { status: 201, body };
  };
  const one = await paid(saleId, who);
  await until("a person to be needed", async () => (await waiting(saleId)).length === 1);
  sick.behave.charge = undefined;
  return { saleId, ...one };
}

describe("what the gateway says wrongly", () => {
  it("another amount, once: looked at again within moments, and fine", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    sick.behave.charge = undefined;
    sick.behave.lookUp = undefined;
    sick.behave.charge = ({ reference }) => {
      sick.charges.set(reference, {
        id: "c",
        reference,
        reservationId: "",
        status: "captured",
        amount: 1000,
        currency: "JPY",
      });
      return { status: 201, body: { id: "c", reference, status: "captured", amount: 7, currency: "JPY" } };
    };
    const { s, id, reference } = await paid(saleId, "once");
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await findPayment(ctx().db, reference)).toMatchObject({
      attention: null,
      capturedAmount: null,
      troubledSince: null,
    });
  });

  it("another amount, for ever: the audit says so, and a person accepts it as paid; repeated it changes nothing, another decision is refused", async () => {
    const { saleId, s, id, reference } = await wrongAmount("accepts");
    const audit = await op.audit(saleId);
    expect(audit).toMatchObject({ ok: false, charges: { amountDiffers: 1 }, open: { attention: 1 } });
    expect(audit.attention[0]).toMatchObject({ reference, state: "unknown" });
    expect((await settle(reference, "accept")).body).toMatchObject({
      state: "captured",
      settled: { action: "accept" },
    });
    expect((await settle(reference, "accept")).status).toBe(200);
    expect((await settle(reference, "not_charged")).body).toMatchObject({ code: "NOT_SETTLEABLE" });
    await until("confirmed", async () => (await s.read(id)).body.recorded === true);
    expect(await op.audit(saleId)).toMatchObject({
      ok: true,
      charges: { accepted: 1, amountDiffers: 0 },
      attention: [],
    });
    const log = await op.get<{ entries: Array<{ action: string; detail: Record<string, unknown> }> }>(
      `/log?saleId=${saleId}`,
    );
    const settled = log.body.entries.filter((e) => e.action === "settle payment");
    expect(settled).toMatchObject([{ detail: { reference, action: "accept", captured: "700 JPY", reason: "looked" } }]);
  });

  it("another amount, and a person gives back what was taken: the unit is free again, and the shopper may pay anew", async () => {
    const { saleId, s, id, reference } = await wrongAmount("refunds");
    expect((await settle(reference, "refund")).body.state).toMatch(/^refund/);
    await until("refunded", async () => (await stateOf(reference)) === "refunded");
    expect(await findPayment(ctx().db, reference)).toMatchObject({ amount: 700, late: true });
    expect((await s.read(id)).body.status).toBe("held");
    expect((await s.confirm(id)).body.status).toBe("confirmed");
    const fine = await until("the books", async () => {
      const a = await op.audit(saleId);
      return a.ok && a;
    });
    expect(fine).toMatchObject({ items: [{ claimed: 1, difference: 0 }], attention: [] });
  });
});

describe("what a person decides", () => {
  it("no answer that can be used, for long: a person is told, and says that nothing was charged: the unit goes back", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    sick.behave.charge = () => ({ status: 500, body: "" });
    sick.behave.lookUp = () => ({ status: 500, body: "" });
    const { s, id, reference } = await paid(saleId, "nothing");
    await until("unknown", async () => (await stateOf(reference)) === "unknown");
    await age(reference, "2 minutes");
    await until("a person to be needed", async () => (await waiting(saleId))[0]?.why.includes("500"));
    expect((await op.audit(saleId)).attention).toMatchObject([{ reference }]);
    expect((await settle(reference, "not_charged")).body.state).toBe("cancelled");
    expect((await s.read(id)).body.status).toBe("held");
    expect((await op.audit(saleId)).items[0]).toMatchObject({ claimed: 0, held: 1, difference: 0 });
  });

  it("a look-up that was on its way when a person decided does not write over the decision", async () => {
    const { saleId, reference } = await wrongAmount("raced");
    const asked = await findPayment(ctx().db, reference);
    sick.latencyMs.lookUp = 300;
    await age(reference, "1 second");
    const looking = lookUpOnce(ctx());
    await until(
      "the look-up to be at the gateway",
      async () => (await findPayment(ctx().db, reference))?.fence !== asked?.fence,
    );
    expect((await settle(reference, "not_charged")).status).toBe(200);
    await looking;
    expect(await stateOf(reference)).toBe("cancelled");
    expect((await op.sale(saleId)).items[0]).toMatchObject({ claimed: 0 });
  });

  it("captured, and refunded at the gateway's console later: the audit names it, a person ends the order, and the mark goes with it", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const { reference } = await paid(saleId, "denied", "tok_ok", 20);
    await until("the order", async () => (await op.sale(saleId)).items[0]?.sold === 1);
    (sick.charges.get(reference) as { status: string }).status = "refunded";
    const audit = await until("the audit", async () => {
      const a = await op.audit(saleId);
      return a.attention.length === 1 && a;
    });
    expect(audit).toMatchObject({ ok: false, orders: { withoutCharge: 1 }, charges: { refundedUnasked: 1 } });
    expect(await waiting(saleId)).toMatchObject([{ reference, actions: ["accept", "refund"] }]);
    expect((await settle(reference, "not_charged")).body.code).toBe("NOT_SETTLEABLE");
    expect((await settle(reference, "refund", { restock: true })).status).toBe(200);
    await until("refunded", async () => (await stateOf(reference)) === "refunded");
    const fine = await until("the books", async () => {
      const a = await op.audit(saleId);
      return a.ok && a;
    });
    expect(fine).toMatchObject({ attention: [], items: [{ claimed: 0, difference: 0 }] });
  });

  it("refuses to settle what waits for nobody, an unknown reference, and an action that it does not know", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    const { reference } = await paid(saleId, "fine", "tok_ok", 20);
    expect((await settle(reference, "not_charged")).body.code).toBe("NOT_SETTLEABLE");
    expect((await settle("0".repeat(26), "accept")).status).toBe(404);
    expect((await settle("nonsense", "accept")).status).toBe(404);
    expect((await settle(reference, "burn")).status).toBe(422);
    expect((await call(`${api.url}/v1/admin/payments`)).status).toBe(401);
  });
});

describe("the gateway's list", () => {
  it("twelve audits at once are one walk, under permits, and odd records of others let none of them fail", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    await paid(saleId, "listed", "tok_ok", 20);
    await until("the books", async () => (await op.audit(saleId)).ok);
    sick.foreign = [
      { reference: "someone-else", status: "on the moon", amount: "much" },
      null,
      17,
      { status: "captured" },
    ];
    await until("no walk to be under way", async () => (await gate()).permits.list === 0);
    const before = sick.count("list");
    const audits = await Promise.all(Array.from({ length: 12 }, () => op.audit(saleId)));
    for (const a of audits) expect(a).toMatchObject({ ok: true, unreadable: 4 });
    expect(sick.count("list") - before).toBeLessThanOrEqual(2); // the worker's own may fall between
    expect(sick.most("list")).toBe(1);
  });

  it("pages shorter than asked for are followed to the end, past odd records, from where the walk stood", async () => {
    const saleId = (await op.create({ items: bags(2) })).body.id;
    const [late] = await Promise.all([paid(saleId, "late", "tok_declined")]);
    await until("declined", async () => (await stateOf(late.reference)) === "declined");
    const other = (n: number) => ({
      reference: `other-${n}`,
      status: n % 7 === 0 ? "odd" : "captured",
      amount: 1,
      currency: "JPY",
    });
    sick.foreign = Array.from({ length: 130 }, (_, n) => other(n));
    sick.pageMax = 50;
    Object.assign(sick.charges.get(late.reference) as object, { status: "captured" });
    await reconcileOnce(ctx(), { walk: true });
    await until("the late money to be honoured or refunded", async () =>
      /captured|refund/.test((await stateOf(late.reference)) ?? ""),
    );
    const [row] = await ctx().db.select().from(gates).where(eq(gates.gateway, "sandbox"));
    expect(Number(row?.listCursor)).toBeGreaterThanOrEqual(100);
  });

  it("a record of ours with a status we do not know is told to a person, and the rest of the page proceeds", async () => {
    const saleId = (await op.create({ items: bags(2) })).body.id;
    const { reference, id } = await paid(saleId, "disputed", "tok_ok", 20);
    await until("the order", async () => (await op.sale(saleId)).items[0]?.sold === 1);
    await ctx().db.update(gates).set({ listCursor: null });
    (sick.charges.get(reference) as { status: string }).status = "disputed";
    sick.charges.set("STRAYSTRAYSTRAYSTRAYSTRAY1", {
      id: "s",
      reference: "STRAYSTRAYSTRAYSTRAYSTRAY1",
      reservationId: id,
      status: "captured",
      amount: 5,
      currency: "JPY",
    });
    await reconcileOnce(ctx(), { walk: true });
    expect(await waiting(saleId)).toMatchObject([{ reference }]);
    expect((await waiting(saleId))[0]?.why).toContain("disputed");
    const strays = await ctx().db.select().from(strayCharges).where(eq(strayCharges.chargeId, "s"));
    expect(strays).toHaveLength(1);
    expect((await op.audit(saleId)).charges).toMatchObject({ odd: 1, withoutOrder: 1 });
  });

  it("is read once for those who ask together, and anew for who asks after it", async () => {
    const gateway = ctx().gateways.get("sandbox");
    if (!gateway) throw new Error("no gateway");
    const [a, b] = await Promise.all([ledgerOf(ctx(), gateway, 0), ledgerOf(ctx(), gateway, 0)]);
    expect(a).toBe(b);
    expect(await ledgerOf(ctx(), gateway, 0)).not.toBe(a);
    expect(await ledgerOf(ctx(), gateway, 60_000)).toBe(await ledgerOf(ctx(), gateway, 60_000));
  });
});
