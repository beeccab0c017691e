/** A sale as operators see it: settings, units, gates, journal and outbox. */
import { sql } from "drizzle-orm";
import type { Context } from "../context.ts";
import type { Sale } from "../domain/sale.ts";
import { needsPerson } from "../payments/rows.ts";
import { saleKeys } from "../stores/keys.ts";
import { gates as gateTable } from "../stores/schema.ts";
import { saleStatus } from "./views.ts";

type FiguresContext = Pick<Context, "db" | "gates" | "redis" | "sales" | "scripts">;

export type SaleFigures = Awaited<ReturnType<typeof saleFigures>>;

export async function saleFigures(ctx: FiguresContext, sale: Sale) {
  const a = await ctx.sales.call(sale, (s) => ctx.scripts.stock(s, [...sale.items.keys()]));
  const rows = await readItems(ctx, sale.id);
  const outbox = await readOutbox(ctx, sale.id);
  const [oldest] = await ctx.redis.client.xrange(saleKeys(sale.id).journal, "-", "+", "COUNT", 1);
  const payments = await readPayments(ctx, sale.id);
  const gates = await readGates(ctx);
  const v = a.results;
  return {
    id: sale.id,
    name: sale.name,
    status: saleStatus({ nowMs: a.nowMs, opensAtMs: v.opensAtMs, closesAtMs: v.closesAtMs, reserving: v.reserving }),
    currency: sale.currency,
    holdMs: sale.holdMs,
    maxUnitsPerCustomer: sale.maxUnitsPerCustomer,
    gateways: sale.gateways,
    shippingFee: sale.shippingFee,
    language: sale.language,
    ...sale.details,
    opensAt: new Date(v.opensAtMs).toISOString(),
    closesAt: new Date(v.closesAtMs).toISOString(),
    serverTime: new Date(a.nowMs).toISOString(),
    reserving: v.reserving ? "on" : "off",
    paying: a.pausedAtMs > 0 ? "off" : "on",
    epoch: sale.epoch,
    items: rows.map((row) => itemFigures(sale, row, v.items.get(row.sku) ?? { free: 0, live: 0 })),
    holds: { held: v.heldHolds, paying: v.payingHolds },
    gates,
    payments,
    journal: { length: v.journalLength, oldestMs: oldest ? Math.max(0, a.nowMs - Number(oldest[0].split("-")[0])) : 0 },
    outbox,
  };
}

export interface ItemFigures {
  sku: string;
  name?: string | undefined;
  unitPrice?: number | undefined;
  granted: number;
  free: number;
  held: number;
  claimed: number;
  sold: number;
}

type ItemRow = { sku: string; granted: number; claimed: number; claimed_live: number; sold: number };

const readItems = (ctx: FiguresContext, saleId: string) =>
  ctx.db.execute<ItemRow>(sql`
    with ordered as (
      select l.sku, sum(l.quantity) as sold from orders o join order_lines l on l.order_id = o.id
      where o.sale_id = ${saleId} and o.status <> 'refunded' group by l.sku
    ), unsettled as (
      select l ->> 'sku' as sku, sum((l ->> 'quantity')::int) as claimed_live
      from payments p cross join jsonb_array_elements(p.lines) l
      where p.sale_id = ${saleId} and p.claimed and p.state in ('sending', 'action_required', 'unknown') group by 1
    )
    select i.sku, i.granted, i.claimed, coalesce(sold, 0)::int as sold, coalesce(claimed_live, 0)::int as claimed_live
    from items i left join ordered using (sku) left join unsettled using (sku)
    where i.sale_id = ${saleId} order by i.position`);

/**
 * Held is what is live in Redis less that of which the units are already claimed in Postgres; the audit reads more
 * carefully.
 */
function itemFigures(sale: Sale, row: ItemRow, units: { free: number; live: number }): ItemFigures {
  const item = sale.items.get(row.sku);
  return {
    sku: row.sku,
    name: item?.name,
    unitPrice: item?.unitPrice,
    granted: row.granted,
    free: units.free,
    held: units.live - row.claimed_live,
    claimed: row.claimed,
    sold: row.sold,
  };
}

async function readOutbox(ctx: FiguresContext, saleId: string) {
  const [mails] = await ctx.db.execute<{ queued: number; sent: number; failed: number; oldestMs: number }>(sql`
    select count(*) filter (where state = 'queued')::int as queued, count(*) filter (where state = 'sent')::int as sent,
      count(*) filter (where state = 'failed')::int as failed,
      coalesce(extract(epoch from now() - (select min(o.recorded_at) from outbox b join orders o on o.id = b.order_id
        where b.sale_id = ${saleId} and b.state = 'queued')) * 1000, 0)::int as "oldestMs"
    from outbox where sale_id = ${saleId}`);
  return mails;
}

/** Payments that have not ended, by state, and those that need a person. */
async function readPayments(ctx: FiguresContext, saleId: string) {
  const [open] = await ctx.db.execute<{
    queued: number;
    sending: number;
    action_required: number;
    unknown: number;
    refunding: number;
    attention: number;
  }>(sql`
    select count(*) filter (where state = 'queued')::int as queued,
      count(*) filter (where state = 'sending')::int as sending,
      count(*) filter (where state = 'action_required')::int as action_required,
      count(*) filter (where state = 'unknown')::int as unknown,
      count(*) filter (where state = 'refunding')::int as refunding,
      (select count(*)::int from payments where sale_id = ${saleId} and ${needsPerson}) as attention
    from payments
    where sale_id = ${saleId} and state in ('queued', 'sending', 'action_required', 'unknown', 'refunding')`);
  return open;
}

async function readGates(ctx: FiguresContext) {
  const breakers = new Map((await ctx.db.select().from(gateTable)).map((g) => [g.gateway, g.breakerUntil]));
  return Promise.all(
    [...ctx.gates.values()].map(async ({ gateway, limit }) => {
      const { inFlight, line, callMs, opensInMs, permits } = await ctx.scripts.gateView(gateway);
      // A worker that ended while it waited cannot say so: what is over is over.
      const isOpen = (breakers.get(gateway)?.getTime() ?? 0) > Date.now();
      const waitMs = opensInMs + Math.ceil(line / limit) * callMs;
      return {
        gateway,
        limit,
        inFlight,
        permits,
        line,
        callMs,
        opensInMs,
        waitMs,
        breaker: isOpen ? "open" : "closed",
      };
    }),
  );
}
