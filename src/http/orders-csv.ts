/** All orders as CSV, for spreadsheets and shipping programs. */
import { and, gte, lt } from "drizzle-orm";
import type { Context as Http } from "hono";
import type { Context } from "../context.ts";
import { orders } from "../stores/schema.ts";
import type { Routes } from "./api.ts";
import { newestFirst, viewOrders } from "./views.ts";

/** What a spreadsheet may take for a formula, its full-width forms and white space before it included. */
const FORMULA = /^[\s=+\-@＝＋－＠]/;

/** Makes a cell harmless to spreadsheets and quotes it. */
export function csvCell(value: string | number | null | undefined): string {
  const text = String(value ?? "");
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const CSV_PAGE = 500;
const CSV_COLUMNS = [
  "order_id",
  "reservation_id",
  "sale_id",
  "customer_id",
  "status",
  "sku",
  "item",
  "quantity",
  "unit_price",
  "order_amount",
  "currency",
  "gateway",
  "reference",
  "charge_id",
  "name",
  "email",
  "phone",
  "postal_code",
  "address",
  "confirmed_at",
  "recorded_at",
];

/** All orders as CSV, streamed page by page: UTF-8 with BOM, one row a line. */
export function ordersCsv(
  ctx: Pick<Context, "db">,
  routes: Pick<Routes, "send">,
  c: Http,
  where: ReturnType<typeof and>,
): Response {
  const encoder = new TextEncoder();
  let before: number | null = null;
  let begun = false;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      if (!begun) {
        begun = true;
        controller.enqueue(encoder.encode(`\uFEFF${CSV_COLUMNS.join(",")}\r\n`));
      }
      const rows = await ctx.db
        .select()
        .from(orders)
        .where(and(where, before === null ? gte(orders.no, 0) : lt(orders.no, before)))
        .orderBy(newestFirst)
        .limit(CSV_PAGE);
      before = rows.at(-1)?.no ?? null;
      const text = (await viewOrders(ctx, rows)).flatMap((o) =>
        o.lines.map((l) =>
          [
            o.id,
            o.reservationId,
            o.saleId,
            o.customerId,
            o.status,
            l.sku,
            l.name,
            l.quantity,
            l.unitPrice,
            o.amount,
            o.currency,
            o.payment.gateway,
            o.payment.reference,
            o.payment.chargeId,
            o.contact.name,
            o.contact.email,
            o.contact.phone,
            o.shipTo?.postalCode,
            o.shipTo?.address,
            o.confirmedAt,
            o.recordedAt,
          ]
            .map(csvCell)
            .join(","),
        ),
      );
      if (text.length > 0) controller.enqueue(encoder.encode(`${text.join("\r\n")}\r\n`));
      if (rows.length < CSV_PAGE) controller.close();
    },
  });
  return routes.send(c, 200, body as unknown as string, {
    "content-type": "text/csv; charset=utf-8",
    "content-disposition": 'attachment; filename="orders.csv"',
  });
}
