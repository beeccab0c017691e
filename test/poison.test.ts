/**
 * Beneath the door: a poisoned row in every path where requests go together. Whoever stood beside it notices nothing.
 */

import { eq } from "drizzle-orm";
import { describe, expect, it } from "vitest";
import { ArgumentRefused, NotStorable } from "../src/domain/errors.ts";
import type { Hold } from "../src/domain/hold.ts";
import { makeReference } from "../src/domain/ids.ts";
import type { Sale } from "../src/domain/sale.ts";
import { smtpMailer } from "../src/notify/mail.ts";
import { sendOnce } from "../src/notify/outbox.ts";
import { findPayment, insertPayments, type RowToInsert } from "../src/payments/rows.ts";
import { rebuildSale } from "../src/recover/rebuild.ts";
import { reconcileOnce } from "../src/recover/reconcile.ts";
import { chargeBatch } from "../src/stages/charge.ts";
import { payStage } from "../src/stages/pay.ts";
import { persistStage } from "../src/stages/persist.ts";
import { reserveStage } from "../src/stages/reserve.ts";
import { apart, coalesce } from "../src/stores/coalesce.ts";
import { gateKeys, saleKeys } from "../src/stores/keys.ts";
import { deadLetters, orders, outbox, payments, reservations } from "../src/stores/schema.ts";
import { bags, CONTACT, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

/** A world whose loops do not run: each step is taken by hand. A grace longer than any hold, so that it would show. */
useWorld({ ROLE: "api", RETRY_GRACE_MS: "600000" });

const ctx = () => api.service.ctx;
const LINES = [{ sku: "bag", quantity: 1, unitPrice: 1000, name: "Bag" }];
const NAMES = ["a", "b", "c", "POISON", "d", "e", "f", "g"];
const HONEST = NAMES.filter((n) => n !== "POISON");

async function saleWith(stock = 50): Promise<Sale> {
  const { id } = (await op.create({ items: bags(stock) })).body;
  return (await ctx().sales.get(id)) as Sale;
}

/** A hold of that customer, made through the front door. */
async function held(sale: Sale, customerId: string) {
  const { id } = (await shopper(api.url, customerId).reserve(sale.id, "k")).body;
  return { id, key: ctx().ids.parse(id, customerId)?.key as string, customerId };
}
const holdOf = async (sale: Sale, key: string) =>
  (await ctx().sales.call(sale, (s) => ctx().scripts.read(s, [key]))).results[0];

async function pinned(sale: Sale, customerId: string) {
  const h = await held(sale, customerId);
  const reference = makeReference(Date.now());
  await ctx().sales.call(sale, (s) =>
    ctx().scripts.pay(s, [{ key: h.key, customerId, reference, referenceBefore: "" }]),
  );
  return { ...h, reference };
}
type Pinned = Awaited<ReturnType<typeof pinned>>;
const rowOf = (sale: Sale, p: Pinned, change: Partial<RowToInsert> = {}): RowToInsert => ({
  reference: p.reference,
  saleId: sale.id,
  reservationId: p.id,
  reservationKey: p.key,
  customerId: p.customerId,
  gateway: "cod",
  tokenDigest: "",
  amount: 1000,
  currency: "JPY",
  lines: LINES,
  contact: CONTACT,
  language: "en",
  state: "queued",
  ...change,
});
/** A cart that no figure of an item can be lowered by. */
const UNUSABLE_LINES = [{ ...(LINES[0] as (typeof LINES)[number]), quantity: "half" as unknown as number }];

async function inPayment(sale: Sale, change: (name: string) => Partial<RowToInsert>) {
  const all = new Map<string, Pinned>();
  for (const name of NAMES) {
    const p = await pinned(sale, `${name}-${sale.no}`);
    all.set(name, p);
    await insertPayments(ctx().db, [rowOf(sale, p, change(name))]);
  }
  return all;
}
const poisonIs = (change: Partial<RowToInsert>) => (name: string) => (name === "POISON" ? change : {});

/** Longer than reconcile leaves a pin alone, shorter than a grace. */
const PINNED_MS = 10_000;
/** The clock of the hold stood while it was pinned: it has the time that it had, and no more. */
function expectHeldAsBefore(hold: Hold | null | undefined, deadlineMs: number, pinnedMsMax: number, ms = PINNED_MS) {
  expect(hold?.state).toBe("held");
  const prolongedMs = (hold?.deadlineMs as number) - deadlineMs;
  expect(prolongedMs).toBeGreaterThanOrEqual(ms);
  expect(prolongedMs).toBeLessThanOrEqual(pinnedMsMax);
}

describe("a batch", () => {
  const limits = { batchMax: 128, waitingMax: 1000, enough: 1, gatherMs: 1 };

  it("of 128 with one guilty costs at most 15 calls, and each of the others gets its own answer", async () => {
    let calls = 0;
    const run = coalesce(async (batch: number[]) => {
      calls++;
      if (batch.includes(77)) throw new ArgumentRefused("77");
      return batch.map((n) => n * 2);
    }, limits);
    const all = await Promise.allSettled(Array.from({ length: 128 }, (_, n) => run(n)));
    expect(calls).toBeLessThanOrEqual(15);
    all.forEach((r, n) => {
      if (n === 77) expect(r).toMatchObject({ status: "rejected", reason: expect.any(ArgumentRefused) });
      else expect(r).toEqual({ status: "fulfilled", value: n * 2 });
    });
  });

  it("that fails for any other reason is never sent again in parts", async () => {
    for (const error of [
      new Error("a timeout"),
      Object.assign(new Error("lost"), { code: "CONNECTION_CLOSED" }),
      Object.assign(new Error("wrapped"), { cause: Object.assign(new Error("deadlock"), { code: "40P01" }) }),
    ]) {
      let calls = 0;
      const told: unknown[] = [];
      const run = async () => {
        calls++;
        throw error;
      };
      await apart(run, [1, 2, 3, 4], (_, outcome) => told.push(outcome));
      expect([calls, told]).toEqual([1, Array(4).fill({ error })]);
    }
  });

  it("one part of which is lost half-way tells only that part that nothing is known", async () => {
    const run = async (batch: number[]) => {
      if (batch.includes(1)) throw Object.assign(new Error("data"), { code: "22021" });
      if (batch.includes(3)) throw Object.assign(new Error("lost"), { code: "CONNECTION_CLOSED" });
      return batch;
    };
    const told: string[] = [];
    await apart(run, [0, 1, 2, 3], (at, o) => {
      told[at] = "error" in o ? (o.error as Error).message : "fine";
    });
    expect(told).toEqual(["fine", "data", "lost", "lost"]);
  });
});

describe("beside a poisoned one", () => {
  it("reserve grants every other request, and the sale is not rebuilt for it", async () => {
    const sale = await saleWith();
    const reserve = reserveStage(ctx());
    const { epoch } = sale;
    for (const poison of [{ lines: "bag:0" }, { customerId: "with\nline" }, { customerId: "with\u0000nul" }]) {
      const answers = await Promise.allSettled(
        NAMES.map((name) => {
          const customerId = `${name}-${JSON.stringify(poison).length}`;
          const one = { key: ctx().ids.reservationKey(sale.no, customerId, "k"), customerId, lines: "bag:1" };
          return reserve(sale, name === "POISON" ? { ...one, ...poison } : one);
        }),
      );
      answers.forEach((r, i) => {
        if (NAMES[i] === "POISON") expect(r).toMatchObject({ status: "rejected", reason: expect.any(NotStorable) });
        else expect(r).toMatchObject({ status: "fulfilled", value: { result: { outcome: "HELD" } } });
      });
    }
    await ctx().sales.refresh(sale.id);
    expect(sale.epoch).toBe(epoch);
  });

  const payRequest = (h: { id: string; key: string; customerId: string }, change = {}) => ({
    key: h.key,
    reservationId: h.id,
    customerId: h.customerId,
    gateway: "cod",
    token: null,
    contact: CONTACT,
    shipTo: null,
    returnUrl: null,
    language: "en",
    ...change,
  });

  it.each([
    ["a NUL", "a\u0000b"],
    ["half of a surrogate pair", "a\ud800b"],
  ])("pay writes every other row when one holds %s; the guilty keeps its hold with the time it had", async (_, bad) => {
    const sale = await saleWith();
    const pay = payStage(ctx());
    const holds = await Promise.all(NAMES.map((name) => held(sale, name)));
    const before = await holdOf(sale, holds[3]?.key as string);
    const answers = await Promise.allSettled(
      holds.map((h, i) => pay(sale, payRequest(h, i === 3 ? { contact: { ...CONTACT, name: bad } } : {}))),
    );
    answers.forEach((r, i) => {
      if (i === 3) expect(r).toMatchObject({ status: "rejected", reason: expect.any(NotStorable) });
      else expect(r).toMatchObject({ status: "fulfilled", value: { outcome: "PAYING", begun: { gateway: "cod" } } });
    });
    expectHeldAsBefore(await holdOf(sale, holds[3]?.key as string), before?.deadlineMs as number, PINNED_MS, 0);
    // And it can be paid for as soon as it is mended.
    expect(await pay(sale, payRequest(holds[3] as (typeof holds)[number]))).toMatchObject({ outcome: "PAYING" });
  });

  it("pay pins every other hold when one cannot be written down", async () => {
    const sale = await saleWith();
    const pay = payStage(ctx());
    const holds = await Promise.all(NAMES.map((name) => held(sale, name)));
    const poison = { ...(holds[3] as (typeof holds)[number]), customerId: "with\u0007bell" };
    const packed = `h|${Date.now() + 600_000}||bag:1|${poison.customerId}`;
    await ctx().redis.client.hset(saleKeys(sale.id).transitionKeys[3] as string, poison.key, packed);
    const answers = await Promise.allSettled(holds.map((h, i) => pay(sale, payRequest(i === 3 ? poison : h))));
    answers.forEach((r, i) => {
      if (i === 3) expect(r).toMatchObject({ status: "rejected", reason: expect.any(NotStorable) });
      else expect(r).toMatchObject({ status: "fulfilled", value: { outcome: "PAYING" } });
    });
  });

  it("every other payment gets its place in the line, and the guilty is left to reconcile", async () => {
    const sale = await saleWith();
    const pay = payStage(ctx());
    const holds = await Promise.all(NAMES.map((name) => held(sale, name)));
    const { lineJoin } = ctx().scripts;
    let poison = "";
    ctx().scripts.lineJoin = async (gateway, references) => {
      poison ||= references[3] as string;
      if (references.includes(poison)) throw new ArgumentRefused("a reference");
      return lineJoin(gateway, references);
    };
    try {
      const paid = await Promise.all(holds.map((h) => pay(sale, payRequest(h))));
      const places = paid.map((p) => ("begun" in p ? p.begun?.place : null));
      expect(places.filter((n) => n === 0)).toHaveLength(1);
      expect(places.filter((n) => (n as number) > 0)).toHaveLength(NAMES.length - 1);
    } finally {
      ctx().scripts.lineJoin = lineJoin;
    }
  });

  it("cash on delivery is claimed for every other payment; the guilty is cancelled and its hold is as it was", async () => {
    const sale = await saleWith();
    await ctx().redis.client.del(gateKeys("cod").line);
    const all = await inPayment(sale, poisonIs({ lines: UNUSABLE_LINES }));
    const poison = all.get("POISON") as Pinned;
    const before = await holdOf(sale, poison.key);
    await ctx().scripts.lineJoin(
      "cod",
      [...all.values()].map((p) => p.reference),
    );
    const cod = ctx().gateways.get("cod");
    if (!cod) throw new Error("cod is on offer");
    await chargeBatch(ctx(), cod);
    for (const name of HONEST)
      expect((await findPayment(ctx().db, (all.get(name) as Pinned).reference))?.state, name).toBe("captured");
    expect(await findPayment(ctx().db, poison.reference)).toMatchObject({
      state: "cancelled",
      declineCode: "unusable",
    });
    expectHeldAsBefore(await holdOf(sale, poison.key), before?.deadlineMs as number, PINNED_MS, 0);
    expect((await op.sale(sale.id)).items[0]).toMatchObject({ claimed: HONEST.length });
  });

  it("persist mirrors every other transition, also of the same journal entry; only the guilty is set aside", async () => {
    const sale = await saleWith();
    const journal = saleKeys(sale.id).journal;
    const line = (name: string, customerId = name) =>
      `${ctx().ids.reservationKey(sale.no, name, "k")}|h|1|${""}|bag:1|${customerId}`;
    const add = (seq: number, lines: string[]) =>
      ctx().redis.client.xadd(
        journal,
        "*",
        "v",
        "1",
        "e",
        String(sale.epoch),
        "s",
        String(seq),
        "t",
        "1000",
        "b",
        lines.join("\n"),
      );
    await add(
      1001,
      ["before"].map((n) => line(n)),
    );
    const id = await add(1002, [
      ...NAMES.map((n) => line(n, n === "POISON" ? "with\u0000nul" : n)),
      "no transition at all",
    ]);
    await add(
      1003,
      ["after"].map((n) => line(n)),
    );
    await persistStage(ctx(), "poison")(sale);
    const mirrored = await ctx().db.select().from(reservations).where(eq(reservations.saleId, sale.id));
    expect(mirrored.map((r) => r.customerId).sort()).toEqual(["after", "before", ...HONEST].sort());
    const letters = await ctx().db.select().from(deadLetters).where(eq(deadLetters.saleId, sale.id));
    expect(letters.map((l) => l.entryId)).toEqual([id]);
    expect(JSON.parse(letters[0]?.body as string)).toEqual({
      lines: ["no transition at all", line("POISON", "with\u0000nul")],
    });
    expect(await ctx().redis.client.xlen(journal)).toBe(0);
  });

  /** Captured, all of them, and one whose order Postgres refuses. */
  async function captured(sale: Sale) {
    const all = await inPayment(sale, poisonIs({ lines: UNUSABLE_LINES }));
    await ctx()
      .db.update(payments)
      .set({ state: "captured", claimed: true, capturedAt: new Date(Date.now() - 10_000) })
      .where(eq(payments.saleId, sale.id));
    return all;
  }
  const ordersOf = async (sale: Sale) =>
    (await ctx().db.select().from(orders).where(eq(orders.saleId, sale.id))).map((o) => o.customerId).sort();
  const honestOf = (sale: Sale) => HONEST.map((n) => `${n}-${sale.no}`).sort();

  it("persist records every other order", async () => {
    const sale = await saleWith();
    const all = await captured(sale);
    await ctx().sales.call(sale, (s) =>
      ctx().scripts.confirm(
        s,
        [...all.values()].map((p) => ({ key: p.key, reference: p.reference })),
      ),
    );
    await until("the journal to be worked off", async () => (await persistStage(ctx(), "orders")(sale)) === 0);
    expect(await ordersOf(sale)).toEqual(honestOf(sale));
  });

  it("reconcile records every other order", async () => {
    const sale = await saleWith();
    await captured(sale);
    await reconcileOnce(ctx());
    expect(await ordersOf(sale)).toEqual(honestOf(sale));
  });

  it("reconcile gives every other hold back, without grace, when one is bound to what Postgres cannot look for", async () => {
    const sale = await saleWith();
    const before = new Map<string, number>();
    const all: Pinned[] = [];
    for (const name of NAMES) {
      const p = await pinned(sale, name);
      all.push(p);
      before.set(p.key, (await holdOf(sale, p.key))?.deadlineMs as number);
    }
    const { client } = ctx().redis;
    const [, , , holds, , paying] = saleKeys(sale.id).transitionKeys as string[];
    const poison = all[3] as Pinned;
    await client.hset(holds as string, poison.key, `p|${before.get(poison.key)}|with\u0000nul|bag:1|POISON`);
    const since = Date.now() - PINNED_MS;
    for (const p of all) await client.zadd(paying as string, since, p.key);
    await reconcileOnce(ctx());
    const atMost = Date.now() - since;
    for (const p of all.filter((one) => one !== poison))
      expectHeldAsBefore(await holdOf(sale, p.key), before.get(p.key) as number, atMost);
  });

  it("a rebuild brings every other hold back", async () => {
    const sale = await saleWith();
    const all = await Promise.all(NAMES.map((name) => held(sale, name)));
    const line = `${ctx().ids.reservationKey(sale.no, "POISON", "x")}|h|1||bag:1|with\u0000nul`;
    await ctx().redis.client.xadd(
      saleKeys(sale.id).journal,
      "*",
      "v",
      "1",
      "e",
      String(sale.epoch),
      "s",
      "1001",
      "t",
      "1000",
      "b",
      line,
    );
    expect(await rebuildSale(ctx(), sale.id, { force: true })).toMatchObject({
      outcome: "REBUILT",
      holds: NAMES.length,
    });
    for (const h of all) expect((await holdOf(sale, h.key))?.state).toBe("held");
  });

  it("every other mail is sent when one cannot be written, and that one is not tried again", async () => {
    const sale = await saleWith();
    await captured(sale);
    await reconcileOnce(ctx());
    const [one] = await ctx().db.select().from(orders).where(eq(orders.saleId, sale.id));
    await ctx()
      .db.update(orders)
      .set({ currency: "no currency" })
      .where(eq(orders.id, one?.id as string));
    const mailer = smtpMailer(world.mailbox.url, "Shop <shop@example.jp>", 2);
    try {
      await until("the outbox to be empty", async () => (await sendOnce(ctx(), mailer)) === 0);
    } finally {
      mailer.close();
    }
    const mails = await ctx().db.select().from(outbox).where(eq(outbox.saleId, sale.id));
    expect(mails.filter((m) => m.state === "sent")).toHaveLength(HONEST.length - 1);
    expect(mails.filter((m) => m.state === "failed").map((m) => m.orderId)).toEqual([one?.id]);
  });

  it("every other look-up of payments, orders and places is answered", async () => {
    const sale = await saleWith();
    const all = await inPayment(sale, () => ({}));
    const references = NAMES.map((n) => (n === "POISON" ? "with\u0000nul" : (all.get(n) as Pinned).reference));
    const seen = await Promise.allSettled(references.map((r) => ctx().reads.payment(r)));
    expect(seen.map((s) => (s.status === "fulfilled" ? s.value?.reference : "POISON"))).toEqual(
      NAMES.map((n) => (n === "POISON" ? n : all.get(n)?.reference)),
    );
    const recorded = await Promise.allSettled(references.map((r) => ctx().reads.recorded(`ord_${r}`)));
    expect(recorded.map((s) => (s.status === "fulfilled" ? s.value : "POISON"))).toEqual(
      NAMES.map((n) => (n === "POISON" ? n : false)),
    );
    const { gateView } = ctx().scripts;
    ctx().scripts.gateView = async (gateway, some = []) => {
      if (some.includes("with\u0000nul")) throw new ArgumentRefused("a reference");
      return gateView(gateway, some);
    };
    try {
      const places = await Promise.allSettled(references.map((r) => ctx().reads.place("sandbox", r)));
      expect(places.map((p) => p.status)).toEqual(NAMES.map((n) => (n === "POISON" ? "rejected" : "fulfilled")));
    } finally {
      ctx().scripts.gateView = gateView;
    }
  });
});

describe("grace", () => {
  it("is not granted for a payment whose row was never written: the hold has the time it had when it was pinned", async () => {
    const sale = await saleWith();
    const p = await pinned(sale, "never-written");
    const before = (await holdOf(sale, p.key))?.deadlineMs as number;
    const since = Date.now() - PINNED_MS;
    await ctx().redis.client.zadd(saleKeys(sale.id).transitionKeys[5] as string, since, p.key);
    await reconcileOnce(ctx());
    expectHeldAsBefore(await holdOf(sale, p.key), before, Date.now() - since);
    expect(await findPayment(ctx().db, p.reference)).toMatchObject({ state: "cancelled", declineCode: "not_written" });
  });
});
