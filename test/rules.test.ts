/** Rules of the protocol that no other test takes hold of: each fails when its rule is taken out of the code. */
import { eq } from "drizzle-orm";
import postgres from "postgres";
import { describe, expect, it } from "vitest";
import { makeReference } from "../src/domain/ids.ts";
import type { Gateway } from "../src/gateways/port.ts";
import { claimForSending, claimLate } from "../src/payments/claim.ts";
import { cancelQueued, findPayment, insertPayments, takeOver, writeTombstone } from "../src/payments/rows.ts";
import { settlePayment } from "../src/payments/settle.ts";
import { rebuildSale } from "../src/recover/rebuild.ts";
import { reconcileOnce } from "../src/recover/reconcile.ts";
import { charge } from "../src/stages/charge.ts";
import type { JournalEntry } from "../src/stages/journal.ts";
import { tokenDigest } from "../src/stages/pay.ts";
import { mirrorHolds, persistStage, recordOrders } from "../src/stages/persist.ts";
import { settleHolds } from "../src/stages/settle-holds.ts";
import { saleKeys } from "../src/stores/keys.ts";
import { deadLetters, items, payments, reservations, stockMoves } from "../src/stores/schema.ts";
import { bags, CONTACT, call, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

/** A world whose loops do not run: each step is taken by hand. */
useWorld({ ROLE: "api" });

const ctx = () => api.service.ctx;
const sandbox = () => ctx().gateways.get("sandbox") as Gateway;

async function saleWith(stock: number) {
  const saleId = (await op.create({ items: bags(stock) })).body.id;
  return {
    saleId,
    sale: (await ctx().sales.get(saleId)) as NonNullable<Awaited<ReturnType<ReturnType<typeof ctx>["sales"]["get"]>>>,
  };
}

/** A hold that is pinned, and its payment row in state queued, as pay leaves them. */
async function queued(saleId: string, customerId: string, token = "tok_ok") {
  const sale = (await ctx().sales.get(saleId)) as Awaited<ReturnType<typeof saleWith>>["sale"];
  const s = shopper(api.url, customerId);
  const { id } = (await s.reserve(saleId, "k")).body;
  const key = ctx().ids.parse(id, customerId)?.key as string;
  const reference = makeReference(Date.now());
  await ctx().sales.call(sale, (stamp) =>
    ctx().scripts.pay(stamp, [{ key, customerId, reference, referenceBefore: "" }]),
  );
  const lines = [{ sku: "bag", quantity: 1, unitPrice: 1000, name: "Bag" }];
  const row = {
    reference,
    saleId,
    reservationId: id,
    reservationKey: key,
    customerId,
    gateway: "sandbox",
    token,
    tokenDigest: tokenDigest("sandbox", token),
    amount: 1000,
    currency: "JPY",
    lines,
    contact: CONTACT,
    language: "en",
    state: "queued" as const,
  };
  await insertPayments(ctx().db, [row]);
  return { s, id, key, reference, sale, row };
}
const permit = (reference: string, covers: () => boolean = () => true) => ({
  token: `by-hand-${reference}`,
  reference,
  covers,
});
const gate = () => ctx().gates.get("sandbox") as NonNullable<ReturnType<ReturnType<typeof ctx>["gates"]["get"]>>;
const atGateway = (reference: string) => call(`${world.gateway.url}/charges/${reference}`);

describe("rule B", () => {
  it("who finds that another one decided goes on with what is stored, never with its own outcome", async () => {
    const { saleId } = await saleWith(1);
    const { s, id, reference } = await queued(saleId, "zombie");
    // The gateway captures; while this worker is frozen another one finds that out and records it; then this one wakes
    // with a wrong outcome.
    const frozen: Gateway = {
      ...sandbox(),
      async charge(request) {
        const answer = await sandbox().charge(request);
        const asked = await findPayment(ctx().db, reference);
        const taken = asked && (await takeOver(ctx().db, reference, asked.fence, 1000, false));
        if (!taken) throw new Error("not taken over");
        await settlePayment(ctx().db, taken, answer, 1000);
        return { outcome: "declined", declineCode: "too late", chargeId: null };
      },
    };
    await charge(ctx(), frozen, gate(), permit(reference));
    expect((await findPayment(ctx().db, reference))?.state).toBe("captured");
    expect((await s.read(id)).body.status).toBe("confirmed");
  });
});

describe("rule E", () => {
  it("a permit that does not cover the call any more claims nothing and sends nothing", async () => {
    const { saleId } = await saleWith(1);
    const { reference } = await queued(saleId, "late1");
    await charge(
      ctx(),
      sandbox(),
      gate(),
      permit(reference, () => false),
    );
    expect((await findPayment(ctx().db, reference))?.state).toBe("queued");
    expect((await atGateway(reference)).status).toBe(404);
  });

  it("a permit that ran out between the claim and the send sends nothing", async () => {
    const { saleId } = await saleWith(1);
    const { reference } = await queued(saleId, "late2");
    const covers = [true, false];
    await charge(
      ctx(),
      sandbox(),
      gate(),
      permit(reference, () => covers.shift() ?? false),
    );
    expect((await findPayment(ctx().db, reference))?.state).toBe("sending");
    expect((await atGateway(reference)).status).toBe(404);
  });
});

describe("rule H", () => {
  it("a second payment is not begun while the first is captured", async () => {
    const { saleId, sale } = await saleWith(2);
    const { reference, row } = await queued(saleId, "again");
    const claim = await claimForSending(ctx().db, reference, sale.epoch, 1000);
    if (claim.outcome !== "CLAIMED") throw new Error(claim.outcome);
    await settlePayment(
      ctx().db,
      claim.payment,
      { outcome: "captured", chargeId: "ch", amount: 1000, currency: "JPY" },
      1000,
    );
    expect((await insertPayments(ctx().db, [{ ...row, reference: makeReference(Date.now()) }])).size).toBe(0);
  });
});

describe("rule K", () => {
  it("a top-up that Postgres has and a rebuild has counted is not added to Redis a second time", async () => {
    const { saleId, sale } = await saleWith(3);
    // Killed between the two stores.
    await ctx().db.insert(stockMoves).values({
      id: "mv_half",
      saleId,
      sku: "bag",
      delta: 4,
      reason: "half",
      idempotencyKey: "half",
      state: "granted",
    });
    await ctx().db.update(items).set({ granted: 7 }).where(eq(items.saleId, saleId));
    await ctx().redis.client.del(...saleKeys(saleId).transitionKeys, saleKeys(saleId).moves);
    await rebuildSale(ctx(), saleId);
    await reconcileOnce(ctx());
    expect((await op.sale(saleId)).items[0]).toMatchObject({ granted: 7, free: 7 });
    expect((await op.topUp(saleId, 4, "half")).body).toMatchObject({ replayed: true, granted: 7 });
    expect(sale.epoch).toBeGreaterThan(1);
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 7 }] });
  });
});

describe("rule L", () => {
  it("units that Redis gave up before it was lost are taken again in the new one, and Postgres lowers its count once", async () => {
    const { saleId, sale } = await saleWith(5);
    await ctx().db.insert(stockMoves).values({
      id: "mv_less",
      saleId,
      sku: "bag",
      delta: -2,
      reason: "half",
      idempotencyKey: "less",
      state: "pending",
    });
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.topUp(s, { id: "mv_less", sku: "bag", delta: -2, customerId: "", units: 0 }),
    );
    await ctx().redis.client.del(...saleKeys(saleId).transitionKeys, saleKeys(saleId).moves);
    await rebuildSale(ctx(), saleId);
    await until(
      "the refusal leases of before to lapse",
      async () => (await shopper(api.url, "l").reserve(saleId, "k")).status === 201,
    );
    await reconcileOnce(ctx());
    expect(await op.audit(saleId)).toMatchObject({ ok: true, items: [{ granted: 3, free: 2, held: 1 }] });
  });
});

describe("late money", () => {
  /** A payment that ended unpaid by our books, and a gateway that captured it all the same. */
  async function capturedLate(saleId: string, customerId: string) {
    const p = await queued(saleId, customerId);
    await ctx()
      .db.update(payments)
      .set({ state: "cancelled", declineCode: "test", endedAt: new Date(), token: null })
      .where(eq(payments.reference, p.reference));
    const { reference, reservationId, amount, currency } = p.row;
    const charged = await call(`${world.gateway.url}/charges`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": reference },
      body: JSON.stringify({ reference, reservationId, amount, currency, token: "tok_ok" }),
    });
    expect(charged.status).toBe(201);
    return p;
  }

  it("is honoured when the units are still there: claimed again, confirmed, one order", async () => {
    const { saleId } = await saleWith(1);
    const p = await capturedLate(saleId, "honoured");
    await reconcileOnce(ctx(), { walk: true });
    expect((await findPayment(ctx().db, p.reference))?.state).toBe("captured");
    expect((await p.s.read(p.id)).body).toMatchObject({ status: "confirmed" });
    await until("the order", async () => {
      await reconcileOnce(ctx());
      return (await op.audit(saleId)).orders?.recorded === 1;
    });
    expect(await op.audit(saleId)).toMatchObject({
      ok: true,
      items: [{ free: 0, held: 0, claimed: 1 }],
      charges: { captured: 1, withoutOrder: 0 },
    });
  });

  it("is honoured also when a decline of before reaches the hold between the claim and the confirm", async () => {
    const { saleId, sale } = await saleWith(1);
    const p = await capturedLate(saleId, "raced");
    const late = await claimLate(ctx().db, p.reference, "ch", saleId, sale.epoch);
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.decline(s, [{ key: p.key, reference: p.reference, graceMs: 60_000, to: "held" }]),
    );
    expect((await p.s.read(p.id)).body.status).toBe("held");
    await settleHolds(ctx(), late ? [late] : []);
    expect((await p.s.read(p.id)).body.status).toBe("confirmed");
    expect(await op.audit(saleId)).toMatchObject({ items: [{ free: 0, held: 0, claimed: 1, difference: 0 }] });
  });

  it("is followed until its hold is confirmed, also when its order is recorded already", async () => {
    const { saleId, sale } = await saleWith(1);
    const p = await capturedLate(saleId, "watched");
    await claimLate(ctx().db, p.reference, "ch", saleId, sale.epoch);
    await ctx().db.transaction((tx) => recordOrders(tx, [p.reference]));
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.decline(s, [{ key: p.key, reference: p.reference, graceMs: 60_000, to: "held" }]),
    );
    await reconcileOnce(ctx());
    expect((await p.s.read(p.id)).body.status).toBe("confirmed");
  });

  it("is refunded when no unit can be claimed though its hold lives: the hold does not stay paying, nor become confirmed by a rebuild", async () => {
    const { saleId } = await saleWith(1);
    const p = await capturedLate(saleId, "pinned");
    await ctx().db.update(items).set({ claimed: 1 }).where(eq(items.saleId, saleId));
    await reconcileOnce(ctx(), { walk: true });
    await ctx().db.update(items).set({ claimed: 0 }).where(eq(items.saleId, saleId));
    await until("the refund, and the hold to be held again", async () => {
      await reconcileOnce(ctx());
      return (
        (await findPayment(ctx().db, p.reference))?.state === "refunded" &&
        (await p.s.read(p.id)).body.status === "held"
      );
    });
    await ctx().redis.client.del(...saleKeys(saleId).transitionKeys.slice(0, 7), saleKeys(saleId).moves);
    await rebuildSale(ctx(), saleId);
    expect((await p.s.read(p.id)).body.status).not.toBe("confirmed");
  });

  it("waits while payments are paused: neither refunded nor honoured until they go on", async () => {
    const { saleId, sale } = await saleWith(1);
    const p = await capturedLate(saleId, "waits");
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.decline(s, [{ key: p.key, reference: p.reference, graceMs: 60_000, to: "held" }]),
    );
    await op.patch(saleId, { paying: "off" });
    await reconcileOnce(ctx(), { walk: true }).catch(() => {});
    expect((await findPayment(ctx().db, p.reference))?.state).not.toBe("refunding");
    await op.patch(saleId, { paying: "on" });
    await until("it to be honoured", async () => {
      await reconcileOnce(ctx(), { walk: true });
      return (await p.s.read(p.id)).body.status === "confirmed";
    });
  });

  it("is refunded when the units were sold to someone else", async () => {
    const { saleId, sale } = await saleWith(1);
    const p = await capturedLate(saleId, "tooLate");
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.decline(s, [{ key: p.key, reference: p.reference, graceMs: 0, to: "released" }]),
    );
    const other = await queued(saleId, "other");
    await charge(ctx(), sandbox(), gate(), permit(other.reference));
    await reconcileOnce(ctx(), { walk: true });
    await until("the refund", async () => {
      await reconcileOnce(ctx());
      return (await findPayment(ctx().db, p.reference))?.state === "refunded";
    });
    expect(((await atGateway(p.reference)).body as { status: string }).status).toBe("refunded");
    expect(((await atGateway(other.reference)).body as { status: string }).status).toBe("captured");
    expect(await op.audit(saleId)).toMatchObject({
      items: [{ claimed: 1, difference: 0 }],
      charges: { refunded: 1, twice: 0 },
    });
  });

  it("of a reservation that was paid by another attempt is refunded, though units are free", async () => {
    const { saleId, sale } = await saleWith(5);
    const p = await capturedLate(saleId, "twice");
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.decline(s, [{ key: p.key, reference: p.reference, graceMs: 60_000, to: "held" }]),
    );
    const again = makeReference(Date.now());
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.pay(s, [{ key: p.key, customerId: "twice", reference: again, referenceBefore: p.reference }]),
    );
    await insertPayments(ctx().db, [{ ...p.row, reference: again }]);
    await charge(ctx(), sandbox(), gate(), permit(again));
    await reconcileOnce(ctx(), { walk: true });
    await until("the refund", async () => {
      await reconcileOnce(ctx());
      return (await findPayment(ctx().db, p.reference))?.state === "refunded";
    });
    expect((await findPayment(ctx().db, again))?.state).toBe("captured");
    expect(await op.audit(saleId)).toMatchObject({
      items: [{ claimed: 1, difference: 0 }],
      charges: { captured: 1, refunded: 1, twice: 0 },
    });
  });

  it("of a reference that was never written (a tombstone) is refunded: there is no cart to honour", async () => {
    const { saleId, sale } = await saleWith(2);
    const customerId = "tomb";
    const s = shopper(api.url, customerId);
    const { id } = (await s.reserve(saleId, "k")).body;
    const key = ctx().ids.parse(id, customerId)?.key as string;
    const reference = makeReference(Date.now());
    await ctx().sales.call(sale, (stamp) =>
      ctx().scripts.pay(stamp, [{ key, customerId, reference, referenceBefore: "" }]),
    );
    await writeTombstone(ctx().db, { reference, saleId, reservationId: id, reservationKey: key, customerId });
    await call(`${world.gateway.url}/charges`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": reference },
      body: JSON.stringify({ reference, reservationId: id, amount: 1000, currency: "JPY", token: "tok_ok" }),
    });
    await reconcileOnce(ctx(), { walk: true });
    await until("the refund", async () => {
      await reconcileOnce(ctx());
      return (await findPayment(ctx().db, reference))?.state === "refunded";
    });
    expect(await op.audit(saleId)).toMatchObject({ ok: true, charges: { captured: 0, refunded: 1, withoutOrder: 0 } });
  });
});

describe("a journal entry of a newer version", () => {
  it("is left for a process that knows it, not set aside, and the others flow", async () => {
    const { saleId, sale } = await saleWith(3);
    const { client } = ctx().redis;
    const journal = saleKeys(saleId).journal;
    await client.xadd(journal, "*", "v", "2", "e", "1", "s", "1", "t", "1", "b", "something new");
    await shopper(api.url, "newer").reserve(saleId, "k");
    await persistStage(ctx(), "old")(sale);
    expect(await client.xlen(journal)).toBe(1);
    expect(await ctx().db.select().from(deadLetters).where(eq(deadLetters.saleId, saleId))).toEqual([]);
    expect(await ctx().db.select().from(reservations).where(eq(reservations.saleId, saleId))).toHaveLength(1);
  });
});

describe("two workers at once", () => {
  it("that mirror the same holds, or record the same orders, never wait for each other crosswise", async () => {
    const { saleId, sale } = await saleWith(400);
    const keys = Array.from({ length: 400 }, (_, i) => ctx().ids.reservationKey(sale.no, `both-${i}`, "k"));
    const rows = keys.map((key, i) => {
      const customerId = `both-${i}`;
      const lines = [{ sku: "bag", quantity: 1, unitPrice: 1000, name: "Bag" }];
      const ids = {
        reference: makeReference(Date.now()),
        saleId,
        reservationId: ctx().ids.reservationId(sale.no, customerId, key),
        reservationKey: key,
      };
      return {
        ...ids,
        customerId,
        gateway: "cod",
        tokenDigest: "",
        amount: 1000,
        currency: "JPY",
        lines,
        contact: CONTACT,
        language: "en",
        state: "queued",
      };
    }) as Parameters<typeof insertPayments>[1];
    await insertPayments(ctx().db, rows);
    const references = rows.map((r) => r.reference);
    // All at one instant, as a batch of cash on delivery is.
    await ctx()
      .db.update(payments)
      .set({ state: "captured", claimed: true, capturedAt: new Date() })
      .where(eq(payments.saleId, saleId));
    const entry = (seq: number, some: typeof rows): JournalEntry => ({
      id: `${seq}-0`,
      epoch: sale.epoch,
      seq,
      atMs: Date.now(),
      transitions: some.map((r) => ({
        key: r.reservationKey,
        letter: "h",
        deadlineMs: 1,
        reference: "",
        lines: "bag:1",
        customerId: r.customerId,
      })),
    });
    for (let round = 0; round < 6; round++) {
      const there = entry(2 * round + 1, rows);
      const back = entry(2 * round + 2, [...rows].reverse());
      await Promise.all([there, back].map((e) => ctx().db.transaction((tx) => mirrorHolds(tx, saleId, [e]))));
    }
    const recorded = await Promise.all(
      [references, [...references].reverse()].map((some) => ctx().db.transaction((tx) => recordOrders(tx, some))),
    );
    expect(recorded.reduce((a, b) => a + b, 0)).toBe(400);
  });
});

describe("a capture of long ago whose order was lost", () => {
  it("is found by the walk over all captures, though no other look goes back so far", async () => {
    const { saleId } = await saleWith(1);
    const { row, sale } = await queued(saleId, "forgotten");
    expect((await claimForSending(ctx().db, row.reference, sale.epoch, 60_000)).outcome).toBe("CLAIMED");
    const hourAgo = new Date(Date.now() - 3_600_000);
    await ctx()
      .db.update(payments)
      .set({ state: "captured", capturedAt: hourAgo, chargeId: "ch_long_ago" })
      .where(eq(payments.reference, row.reference));
    const recorded = async () => (await op.audit(saleId)).orders.recorded;
    await reconcileOnce(ctx());
    expect(await recorded()).toBe(0);
    await reconcileOnce(ctx(), { walk: true });
    expect(await recorded()).toBe(1);
  });
});

describe("rule J, for the mirror", () => {
  it("a hold that only its payment knew of is mirrored by the rebuild that brings it back", async () => {
    const { saleId } = await saleWith(1);
    const { key, reference } = await queued(saleId, "unmirrored");
    await ctx().redis.client.flushall();
    await rebuildSale(ctx(), saleId);
    const rows = await ctx().db.select().from(reservations).where(eq(reservations.saleId, saleId));
    expect(rows).toMatchObject([{ saleId, key, state: "p", reference, lines: "bag:1", customerId: "unmirrored" }]);
    await rebuildSale(ctx(), saleId);
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 0, held: 1, claimed: 0 });
  });
});

describe("rule I, for the payment's row", () => {
  /** The payments table takes no new row until the returned function is called; reading goes on. */
  async function noNewPayments(): Promise<() => Promise<void>> {
    const sql = postgres(world.databaseUrl, { max: 1 });
    let release: () => void = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    let locked: () => void = () => {};
    const isLocked = new Promise<void>((resolve) => {
      locked = resolve;
    });
    const held = sql.begin(async (tx) => {
      await tx`lock table payments in share row exclusive mode`;
      locked();
      await released;
    });
    await isLocked;
    return async () => {
      release();
      await held;
      await sql.end();
    };
  }
  const pinned = (saleId: string, key: string) => async () => {
    const sale = (await ctx().sales.get(saleId)) as Awaited<ReturnType<typeof saleWith>>["sale"];
    return (await ctx().sales.call(sale, (s) => ctx().scripts.read(s, [key]))).results[0]?.state === "paying";
  };

  it.each([
    ["whose hold is rebuilt", true],
    ["whose hold is lost", false],
  ])("a payment %s while its row is being written is not begun, and no unit is offered twice", async (_, mirrored) => {
    const { saleId, sale } = await saleWith(1);
    const s = shopper(api.url, `between-${mirrored}`);
    const { id } = (await s.reserve(saleId, "k")).body;
    const key = ctx().ids.parse(id, `between-${mirrored}`)?.key as string;
    if (mirrored) await persistStage(ctx(), "by-hand")(sale);
    const go = await noNewPayments();
    const confirming = s.confirm(id, { gateway: "cod" }, { waitS: 0 });
    await until("the pin", pinned(saleId, key));
    await ctx().redis.client.flushall();
    await rebuildSale(ctx(), saleId);
    await go();
    expect(await confirming).toMatchObject({ status: 503 });
    expect(await ctx().db.select().from(payments).where(eq(payments.saleId, saleId))).toEqual([]);
    const item = (await op.sale(saleId)).items[0];
    expect(item).toMatchObject(mirrored ? { free: 0, held: 1, claimed: 0 } : { free: 1, held: 0, claimed: 0 });
    // The shopper presses again, and is told the truth.
    expect(await s.confirm(id, { gateway: "cod" }, { waitS: 0 })).toMatchObject(
      mirrored ? { status: 202 } : { status: 410, body: { code: "HOLD_LOST" } },
    );
  });

  it("late money that was pinned before a rebuild is not claimed after it", async () => {
    const { saleId, sale } = await saleWith(1);
    const { id, key, reference } = await queued(saleId, "late-between");
    await cancelQueued(ctx().db, [reference], "by hand");
    const epoch = sale.epoch;
    await ctx().redis.client.flushall();
    await rebuildSale(ctx(), saleId);
    await expect(claimLate(ctx().db, reference, "ch_late", saleId, epoch)).rejects.toThrow();
    expect((await findPayment(ctx().db, reference))?.state).toBe("cancelled");
    expect([id, key]).toBeTruthy();
  });
});

describe("a rebuild while a payment ends", () => {
  it("counts the units and the payments of one moment: none is taken for claimed whose payment is read as declined", async () => {
    const { saleId } = await saleWith(1);
    const { row, sale } = await queued(saleId, "meanwhile");
    expect((await claimForSending(ctx().db, row.reference, sale.epoch, 60_000)).outcome).toBe("CLAIMED");
    await ctx().redis.client.flushall();
    const client = postgres(world.databaseUrl, { max: 2, onnotice: () => {} });
    let rebuilt: Promise<unknown> = Promise.resolve();
    await client.begin(async (tx) => {
      await tx`lock table payments in access exclusive mode`;
      rebuilt = rebuildSale(ctx(), saleId);
      // It has read the items, and waits for the payments.
      await until(
        "the rebuild to wait",
        async () =>
          (await client`select 1 from pg_locks where relation = 'payments'::regclass and not granted`).length > 0,
      );
      await tx`update payments set state = 'declined', claimed = false, decline_code = 'card_declined',
        ended_at = now(), check_at = null where reference = ${row.reference}`;
      await tx`update items set claimed = claimed - 1 where sale_id = ${saleId}`;
    });
    await client.end();
    await rebuilt;
    // Its hold had not reached Postgres, so the unit is free.
    expect((await op.sale(saleId)).items[0]).toMatchObject({ granted: 1, free: 1, held: 0, claimed: 0 });
  });
});
