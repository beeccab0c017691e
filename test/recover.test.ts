/** What crashes, a wiped or restarted Redis and frozen workers leave behind, and how it heals by itself. */
import { eq } from "drizzle-orm";
import { describe, expect, it } from "vitest";
import type { Context } from "../src/context.ts";
import { createSale } from "../src/http/sale-changes.ts";
import { startRedis } from "../src/local/redis.ts";
import { claimForSending } from "../src/payments/claim.ts";
import { findPayment, insertPayments, takeOver } from "../src/payments/rows.ts";
import { settlePayment } from "../src/payments/settle.ts";
import { rebuildSale } from "../src/recover/rebuild.ts";
import { reconcileOnce } from "../src/recover/reconcile.ts";
import { tokenDigest } from "../src/stages/pay.ts";
import { saleKeys } from "../src/stores/keys.ts";
import { epochs, items, orders, reservations } from "../src/stores/schema.ts";
import { bags, inParallel, makeWorld, operator, pause, saleBodyOf, shopper, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

useWorld();

const ctx = () => api.service.ctx;
const signal = () => {
  let give = () => {};
  const given = new Promise<void>((resolve) => {
    give = resolve;
  });
  return { give, given };
};
const balanced = (saleId: string) =>
  until("the books to balance and rest", async () => {
    const a = await op.audit(saleId);
    return a.ok && a.open?.paying === 0 && a.open.journalLag === 0 && a;
  });
const mirrored = (saleId: string, n: number) =>
  until(
    "the journal to be persisted",
    async () =>
      (await ctx().db.select().from(reservations).where(eq(reservations.saleId, saleId))).length === n &&
      (await ctx().redis.client.xlen(saleKeys(saleId).journal)) === 0,
  );

describe("Redis", () => {
  it("emptied in the middle of a sale: granting stops, the sale is rebuilt from Postgres and goes on by itself, every persisted hold and order kept", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const shoppers = await inParallel(
      6,
      Array.from({ length: 6 }, (_, i) => async () => {
        const s = shopper(api.url, `wiped${i}`);
        return { s, id: (await s.reserve(saleId, "k")).body.id };
      }),
    );
    type One = (typeof shoppers)[number];
    const [paid, declined, released, ...rest] = shoppers as [One, One, One, ...One[]];
    await paid.s.confirm(paid.id, { gateway: "cod" });
    await declined.s.confirm(declined.id, { token: "tok_declined" });
    await released.s.release(released.id);
    await op.topUp(saleId, 5, "before");
    await mirrored(saleId, 6);
    await ctx().redis.client.flushall();

    const fresh = await until("the sale to go on", async () => {
      const r = await shopper(api.url, "after").reserve(saleId, "k");
      // Never SOLD_OUT, which would send a shopper away: units are free, though refusal leases of before may still run.
      if (r.status !== 201) expect(r.body.code).toMatch(/^(UNAVAILABLE|ALL_HELD)$/);
      if (r.status !== 201) expect(Number(r.headers.get("retry-after"))).toBeGreaterThan(0);
      return r.status === 201 && r;
    });
    expect(fresh.body.status).toBe("held");
    expect((await paid.s.read(paid.id)).body.status).toBe("confirmed");
    expect((await declined.s.read(declined.id)).body).toMatchObject({
      status: "held",
      payment: { declineCode: "card_declined" },
    });
    expect((await released.s.reserve(saleId, "k")).body.status).toBe("released");
    for (const { s, id } of rest) expect((await s.read(id)).body.status).toBe("held");
    expect((await op.topUp(saleId, 5, "before")).body).toMatchObject({ granted: 15, replayed: true });
    expect(await balanced(saleId)).toMatchObject({ items: [{ granted: 15, free: 9, held: 5, claimed: 1 }] });
    const [row] = await ctx().db.select().from(epochs).where(eq(epochs.saleId, saleId));
    expect(row?.epoch).toBe(2);
  });

  it("emptied before a hold reached Postgres: its owner is told HOLD_LOST, uncharged, and the unit is sold to someone else", async () => {
    // A world without a worker, so that the journal is not persisted.
    const lonely = await makeWorld();
    try {
      const one = await lonely.start({ ROLE: "api" });
      const o = operator(one.url);
      const saleId = (await o.create({ items: bags(1) })).body.id;
      const s = shopper(one.url, "unlucky");
      const { id } = (await s.reserve(saleId, "k")).body;
      await one.service.ctx.redis.client.flushall();
      await until(
        "the unit to be free again",
        async () => (await shopper(one.url, "next").reserve(saleId, "k")).status === 201,
      );
      expect((await s.confirm(id)).body.code).toBe("HOLD_LOST");
      expect((await s.read(id)).status).toBe(410);
      expect(await o.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 0, held: 1 }] });
    } finally {
      await lonely.close();
    }
  });

  it("restarted with its data: nothing is lost, not even what was not persisted yet", async () => {
    const w = await makeWorld();
    try {
      const one = await w.start({ ROLE: "api" });
      const o = operator(one.url);
      const saleId = (await o.create()).body.id;
      const s = shopper(one.url, "kept");
      const { id } = (await s.reserve(saleId, "k")).body;
      await w.redis.stop();
      expect((await s.reserve(saleId, "other")).status).toBe(503);
      const again = await startRedis(`${w.folder}/redis`, undefined, {
        port: w.redis.port,
        password: w.redis.password,
      });
      try {
        const r = await until("the hold", async () => {
          const x = await s.reserve(saleId, "k");
          return x.status !== 503 && x;
        });
        expect([r.status, r.body.id, r.body.status]).toEqual([200, id, "held"]);
        // Rule G: another instance, even with all its data, is another epoch.
        const [row] = await one.service.ctx.db.select().from(epochs).where(eq(epochs.saleId, saleId));
        expect(row?.epoch).toBe(2);
        expect(await o.audit(saleId)).toMatchObject({ ok: true, items: [{ free: 9, held: 1 }] });
        await one.close();
      } finally {
        await again.stop();
      }
    } finally {
      await w.close();
    }
  });

  it("with a stock count deleted by hand is unknown, never 0: the sale is rebuilt", async () => {
    const saleId = (await op.create()).body.id;
    await ctx().redis.client.del(saleKeys(saleId).transitionKeys[1] as string);
    await until("the sale to go on", async () => (await shopper(api.url, "del").reserve(saleId, "k")).status === 201);
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 9, held: 1 });
  });

  it("with a unit too many is told by the audit, and counted anew from Postgres when an operator says so", async () => {
    const saleId = (await op.create({ items: bags(5) })).body.id;
    await shopper(api.url, "keeps").reserve(saleId, "k");
    await mirrored(saleId, 1);
    await ctx().redis.client.hincrby(saleKeys(saleId).transitionKeys[1] as string, "bag", 1);
    expect(await op.audit(saleId)).toMatchObject({ ok: false, items: [{ difference: -1 }] });
    expect(await rebuildSale(ctx(), saleId)).toEqual({ outcome: "HEALTHY" });
    expect(await rebuildSale(ctx(), saleId, { force: true })).toMatchObject({ outcome: "REBUILT", holds: 1 });
    expect((await balanced(saleId)).items[0]).toMatchObject({ free: 4, held: 1, difference: 0 });
  });

  it("behind what this process has seen (a stale replica took over) is not believed", async () => {
    const saleId = (await op.create({ items: bags(1) })).body.id;
    await shopper(api.url, "first").reserve(saleId, "k");
    await mirrored(saleId, 1);
    // As a replica that stopped following before the reservation.
    const keys = saleKeys(saleId).transitionKeys as [string, string, string, string, string];
    await ctx()
      .redis.client.multi()
      .hset(keys[0], "seq", 0)
      .hset(keys[1], "bag", 1)
      .hset(keys[2], "bag", 0)
      .del(keys[3], keys[4])
      .exec();
    const second = await until("an answer", async () => {
      const r = await shopper(api.url, "second").reserve(saleId, "k");
      return r.status !== 503 && r;
    });
    expect(second.body.code).toBe("ALL_HELD");
  });

  it("of a later epoch than Postgres (a restored database) is never rebuilt over", async () => {
    const saleId = (await op.create()).body.id;
    await ctx().redis.client.hset(saleKeys(saleId).sale, "epoch", 9);
    await expect(rebuildSale(ctx(), saleId)).rejects.toThrow(/was Postgres restored/);
    expect((await shopper(api.url, "c").reserve(saleId, "k")).body.code).toBe("UNAVAILABLE");
    await ctx().redis.client.hset(saleKeys(saleId).sale, "epoch", 1);
  });

  it("rebuilt by two processes at once is rebuilt to one state, whose books balance", async () => {
    const second = await world.start();
    const saleId = (await op.create()).body.id;
    await shopper(api.url, "two").reserve(saleId, "k");
    await mirrored(saleId, 1);
    await ctx().redis.client.del(saleKeys(saleId).sale);
    await Promise.all([rebuildSale(ctx(), saleId), rebuildSale(second.service.ctx, saleId)]);
    expect(await balanced(saleId)).toMatchObject({ items: [{ free: 9, held: 1 }] });
    for (const url of [api.url, second.url])
      await until("both to serve", async () => (await shopper(url, "later").reserve(saleId, "k")).status < 300);
    await second.close();
  });

  it("rebuilt by a slow process whom another one overtakes: its image is refused, and no hold is granted only to be lost", async () => {
    // Without a worker nobody else makes the sale whole.
    const lonely = await makeWorld();
    try {
      const [one, two] = [await lonely.start({ ROLE: "api" }), await lonely.start({ ROLE: "api" })];
      const slow = (of: Context) => {
        const [at, go, answered] = [signal(), signal(), signal()];
        const install: Context["scripts"]["install"] = async (...image) => {
          at.give();
          await go.given;
          return of.scripts.install(...image).finally(answered.give);
        };
        return {
          ctx: { ...of, scripts: { ...of.scripts, install } },
          at: at.given,
          go: go.give,
          answered: answered.given,
        };
      };
      // The first image of a sale, since of any later one nothing is granted for a while (refusal_lease.lua).
      const [first, second] = [slow(one.service.ctx), slow(two.service.ctx)];
      const sale = saleBodyOf({ items: bags(10) });
      const created = createSale(first.ctx, sale);
      await first.at;
      const rebuilt = rebuildSale(second.ctx, sale.id);
      await second.at;
      first.go();
      await first.answered;
      const s = shopper(two.url, "between");
      const early = await s.reserve(sale.id, "k");
      second.go();
      expect(await rebuilt).toMatchObject({ outcome: "REBUILT", epoch: 2 });
      await created;
      if (early.status === 201) expect((await s.read(early.body.id)).body).toMatchObject({ status: "held" });
      else expect(early.body.code).toBe("UNAVAILABLE");
    } finally {
      await lonely.close();
    }
  });

  it("rebuilt by a process that stalled after its fence: it raises nothing, since what was granted meanwhile is not in what it read", async () => {
    // No worker, so that what is granted is in Redis' journal alone.
    const lonely = await makeWorld();
    try {
      const [one, stalled] = [await lonely.start({ ROLE: "api" }), await lonely.start({ ROLE: "api" })];
      const saleId = (await operator(one.url).create({ items: bags(10) })).body.id;
      const { scripts, db, sales } = stalled.service.ctx;
      const [at, go] = [signal(), signal()];
      let fenced: ReturnType<typeof scripts.fence> | undefined;
      const rebuilt = rebuildSale(
        {
          ...stalled.service.ctx,
          scripts: { ...scripts, fence: (...f) => (fenced ??= scripts.fence(...f)) },
          db: Object.assign(Object.create(db), {
            transaction: async (...t: Parameters<typeof db.transaction>) => {
              at.give();
              await go.given;
              return db.transaction(...t);
            },
          }),
        },
        saleId,
        { force: true },
      );
      await at.given;
      const s = shopper(one.url, "between");
      const { id } = await until(
        "another process to rebuild it",
        async () => (await s.reserve(saleId, "k")).body.id && (await s.reserve(saleId, "k")).body,
      );
      await sales.refresh(saleId);
      go.give();
      expect(await rebuilt).toEqual({ outcome: "HEALTHY" });
      expect((await s.read(id)).body.status).toBe("held");
    } finally {
      await lonely.close();
    }
  });
});

/** A reservation pinned by hand, as a process that died after pay.lua leaves it. */
async function pinned(saleId: string, customerId: string, reference: string) {
  const s = shopper(api.url, customerId);
  const { id } = (await s.reserve(saleId, "k")).body;
  const sale = await ctx().sales.get(saleId);
  if (!sale) throw new Error("no sale");
  const key = id.slice(-33, -11);
  await ctx().sales.call(sale, (stamp) =>
    ctx().scripts.pay(stamp, [{ key, customerId, reference, referenceBefore: "" }]),
  );
  const row = {
    reference,
    saleId,
    reservationId: id,
    reservationKey: key,
    customerId,
    gateway: "sandbox",
    token: "tok_ok",
    tokenDigest: tokenDigest("sandbox", "tok_ok"),
    amount: 1000,
    currency: "JPY",
    lines: [{ sku: "bag", quantity: 1, unitPrice: 1000, name: "Bag" }],
    contact: { email: "a@b.jp", name: "a" },
    language: "en",
    state: "queued" as const,
  };
  return { s, id, row, sale };
}

describe("a process that died", () => {
  const ref = (c: string) => c.repeat(26);

  it("between the pin and the payment row: the hold is held again, and a row written late is refused (rule D)", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { s, id, row } = await pinned(saleId, "pin", ref("A"));
    await until("held again", async () => (await s.read(id)).body.status === "held");
    expect((await insertPayments(ctx().db, [row])).size).toBe(0);
    expect((await s.confirm(id)).status).toBe(200);
    expect(await balanced(saleId)).toMatchObject({ charges: { captured: 1 } });
  });

  it("between the payment row and the line: the payment is put in line and made", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { s, id, row } = await pinned(saleId, "row", ref("B"));
    await insertPayments(ctx().db, [row]);
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await balanced(saleId)).toMatchObject({ charges: { captured: 1 }, orders: { recorded: 1 } });
  });

  it("after the claim and before or after the send: the gateway is asked, and there is one charge and one order", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    for (const [c, sent] of [
      ["C", false],
      ["D", true],
    ] as const) {
      const { s, id, row, sale } = await pinned(saleId, `claim${c}`, ref(c));
      await insertPayments(ctx().db, [{ ...row, checkAt: null }]);
      // The line must not be faster than the death: the claim is made here, by the process that dies.
      const claim = await claimForSending(ctx().db, ref(c), sale.epoch, 500);
      expect(claim.outcome).toBe("CLAIMED");
      if (sent) {
        const { reference, reservationId, amount, currency, token } = row;
        await fetch(`${world.gateway.url}/charges`, {
          method: "POST",
          headers: { "content-type": "application/json", "idempotency-key": reference },
          body: JSON.stringify({ reference, reservationId, amount, currency, token }),
        });
      }
      await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    }
    expect(await balanced(saleId)).toMatchObject({ charges: { captured: 2, twice: 0 }, orders: { recorded: 2 } });
  });

  it("after the captured outcome: the order is recorded from the payment's snapshot, also when Redis is emptied", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { s, id, row, sale } = await pinned(saleId, "outcome", ref("E"));
    await insertPayments(ctx().db, [row]);
    const claim = await claimForSending(ctx().db, ref("E"), sale.epoch, 60_000);
    if (claim.outcome !== "CLAIMED") throw new Error(claim.outcome);
    const { reference, reservationId, amount, currency, token } = row;
    await fetch(`${world.gateway.url}/charges`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": reference },
      body: JSON.stringify({ reference, reservationId, amount, currency, token }),
    });
    await settlePayment(
      ctx().db,
      claim.payment,
      { outcome: "captured", chargeId: "ch", amount: 1000, currency: "JPY" },
      0,
    );
    await ctx().redis.client.flushall();
    await until(
      "the order",
      async () =>
        (
          await ctx()
            .db.select()
            .from(orders)
            .where(eq(orders.reference, ref("E")))
        ).length === 1,
    );
    await until("confirmed", async () => (await s.read(id)).body.status === "confirmed");
    expect(await balanced(saleId)).toMatchObject({
      charges: { captured: 1, withoutOrder: 0 },
      orders: { recorded: 1 },
    });
  });
});

describe("Postgres, the last guard", () => {
  it("refuses the claim when Redis has granted more than exists: nobody is charged beyond stock, and the hold is released", async () => {
    const saleId = (await op.create({ items: bags(2) })).body.id;
    // Redis gone wrong: it believes in three more units than were ever granted.
    await ctx().redis.client.hset(saleKeys(saleId).transitionKeys[1] as string, "bag", 5);
    const holds = await inParallel(
      5,
      Array.from({ length: 5 }, (_, i) => async () => ({
        s: shopper(api.url, `over${i}`),
        id: (await shopper(api.url, `over${i}`).reserve(saleId, "k")).body.id,
      })),
    );
    const replies = await inParallel(
      5,
      holds.map(
        ({ s, id }, i) =>
          () =>
            s.confirm(id, i % 2 ? { gateway: "cod" } : { token: "tok_ok" }),
      ),
    );
    expect(replies.filter((r) => r.status === 200)).toHaveLength(2);
    expect(replies.filter((r) => r.body.code === "HOLD_LOST")).toHaveLength(3);
    const [item] = await ctx().db.select().from(items).where(eq(items.saleId, saleId));
    expect(item).toMatchObject({ granted: 2, claimed: 2 });
    const audit = await op.audit(saleId);
    expect(audit.items[0]?.difference).not.toBe(0);
    expect(audit.ok).toBe(false);
  });

  it("takes no outcome from a worker whose work was taken over (fencing)", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { row, sale } = await pinned(saleId, "zombie", "F".repeat(26));
    await insertPayments(ctx().db, [row]);
    const claim = await claimForSending(ctx().db, row.reference, sale.epoch, 60_000);
    if (claim.outcome !== "CLAIMED") throw new Error(claim.outcome);
    const taken = await takeOver(ctx().db, row.reference, claim.payment.fence, 60_000, false);
    if (!taken) throw new Error("not taken over");
    const zombie = await settlePayment(
      ctx().db,
      claim.payment,
      { outcome: "declined", declineCode: "late", chargeId: null },
      0,
    );
    expect(zombie).toMatchObject({ state: "sending", claimed: true });
    const owner = await settlePayment(
      ctx().db,
      taken,
      { outcome: "declined", declineCode: "card_declined", chargeId: null },
      0,
    );
    expect(owner).toMatchObject({ state: "declined", claimed: false });
    // Rule B: a later worker acts on what is stored.
    expect(
      await settlePayment(ctx().db, taken, { outcome: "captured", chargeId: "x", amount: 1000, currency: "JPY" }, 0),
    ).toMatchObject({ state: "declined" });
    await reconcileOnce(ctx());
    expect((await findPayment(ctx().db, row.reference))?.state).toBe("declined");
  });

  it("records no order for a confirmed entry of the journal whose payment is not captured (P8)", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { id, row, sale } = await pinned(saleId, "early", "H".repeat(26));
    await insertPayments(ctx().db, [row]);
    expect((await claimForSending(ctx().db, row.reference, sale.epoch, 60_000)).outcome).toBe("CLAIMED");
    // A defect elsewhere: Redis is told "confirmed" before the gateway has said anything.
    const requests = [{ key: id.slice(-33, -11), reference: row.reference }];
    expect((await ctx().sales.call(sale, (s) => ctx().scripts.confirm(s, requests))).results[0]?.outcome).toBe(
      "CONFIRMED",
    );
    await until(
      "the entry to be persisted",
      async () => (await ctx().db.select().from(reservations).where(eq(reservations.saleId, saleId)))[0]?.state === "c",
    );
    expect(await ctx().db.select().from(orders).where(eq(orders.reference, row.reference))).toEqual([]);
  });

  it("refuses a claim under an epoch that a rebuild has raised (rule I)", async () => {
    const saleId = (await op.create({ items: bags(10) })).body.id;
    const { row, sale } = await pinned(saleId, "epoch", "G".repeat(26));
    await insertPayments(ctx().db, [row]);
    expect(await claimForSending(ctx().db, row.reference, sale.epoch - 1, 1000)).toEqual({ outcome: "OLD_EPOCH" });
    expect((await findPayment(ctx().db, row.reference))?.state).not.toBe("sending");
  });
});

describe("the gate", () => {
  it("keeps the permit of a call that was not answered until its lease ends, while the gateway may still be working (P6)", async () => {
    const w = await makeWorld({ gateway: { SANDBOX_LATENCY_MS: "5" } });
    try {
      const one = await w.start({
        GATEWAY_TIMEOUT_MS: "300",
        GATEWAY_OVERRUN_MS: "200",
        GATEWAY_LEASE_MS: "10000",
        GATEWAY_IN_FLIGHT_MAX: "2",
      });
      const saleId = (await operator(one.url).create()).body.id;
      const s = shopper(one.url, "silent");
      const { id } = (await s.reserve(saleId, "k")).body;
      expect((await s.confirm(id, { token: "tok_timeout_after_charge" }, { waitS: 0 })).status).toBe(202);
      await until("the charge to be in the ledger", async () => (await w.sandbox("/stats")).charges === 1);
      // Through our timeout and beyond, well within the lease.
      for (const end = performance.now() + 1_200; performance.now() < end; await pause(20)) {
        expect((await one.service.ctx.scripts.gateView("sandbox")).inFlight).toBeGreaterThanOrEqual(1);
      }
      await until("confirmed by a look-up", async () => (await s.read(id)).body.status === "confirmed");
    } finally {
      await w.close();
    }
  });
});
