import { describe, expect, it } from "vitest";
import type { Sale } from "../src/domain/sale.ts";
import { shopper, until } from "./support.ts";
import { api, op, useWorld } from "./world.ts";

useWorld({ ROLE: "api" });

const HOUR_MS = 3_600_000;
const newSale = async () => {
  const saleId = (await op.create()).body.id;
  return { saleId, sale: api.service.ctx.sales.known(saleId) as Sale };
};

describe("Redis' clock", () => {
  it.each([10_000, HOUR_MS])(
    "that went forward by %i ms is learned from the refusals: reserves are granted again",
    async (jumpMs) => {
      const { saleId, sale } = await newSale();
      // What this process knew of the clock before it went forward.
      sale.clockAheadMs = 1 - jumpMs;
      const s = shopper(api.url, `forward-${jumpMs}`);
      await until("a reserve to be granted", async () => (await s.reserve(saleId, "k")).status === 201);
      expect(Math.abs(sale.clockAheadMs)).toBeLessThan(HOUR_MS / 2);
    },
  );

  it("of another Redis is not taken for that of the one before: a new epoch learns it anew", async () => {
    const { saleId, sale } = await newSale();
    sale.clockAheadMs = 1 - HOUR_MS;
    await api.service.ctx.redis.client.flushall();
    const s = shopper(api.url, "failover");
    await until("the sale to be rebuilt", async () => (await s.reserve(saleId, "k")).status === 201);
    expect(Math.abs(sale.clockAheadMs)).toBeLessThan(HOUR_MS / 2);
  });
});
