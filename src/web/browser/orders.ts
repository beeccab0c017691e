/** The cockpit's orders, what can be done with each, and the trail of what was done. */
import { formatInstant, formatMoney } from "../../domain/money.ts";
import { admin, w } from "./admin.ts";
import { ask } from "./ask.ts";
import { showAttention } from "./attention.ts";
import { fillRows, find, language, make } from "./dom.ts";

const reasonField = { name: "reason", label: w.reason, type: "text" as const };

interface OrderRow {
  id: string;
  status: string;
  amount: number;
  currency: string;
  confirmedAt: string;
  contact: { name: string; email: string };
}
const ORDERS_PAGE = 20;
let orders: OrderRow[] = [];
let cursor: string | null = null;
let saleId = "";

const ordersPage = (after: string | null) =>
  admin<{ orders: OrderRow[]; nextCursor: string | null }>(
    "GET",
    `/orders?saleId=${encodeURIComponent(saleId)}&limit=${ORDERS_PAGE}${after ? `&cursor=${encodeURIComponent(after)}` : ""}`,
  );

export async function moreOrders(): Promise<void> {
  const next = await ordersPage(cursor);
  orders = [...orders, ...next.orders];
  cursor = next.nextCursor;
  renderOrders();
}

function renderOrders(): void {
  find("#more-orders").hidden = cursor === null;
  fillRows(
    find("#order-rows"),
    orders.map((o) => ({
      // A changed state changes what can be done: then it is another row.
      key: `${o.id} ${o.status}`,
      cells: [
        o.id,
        formatInstant(o.confirmedAt, o.currency, language),
        `${o.contact.name} <${o.contact.email}>`,
        formatMoney(o.amount, o.currency, language),
        w.orderStates[o.status] ?? o.status,
      ],
      actions: () => [
        ...(o.status === "confirmed"
          ? [make("button", { type: "button", "data-refund": o.id, click: () => askRefund(o.id) }, w.refund)]
          : []),
        make("button", { type: "button", "data-resend": o.id, click: () => askResend(o.id) }, w.resend),
      ],
    })),
    w.noOrders,
  );
}

function askRefund(id: string): void {
  ask({
    title: w.refund,
    words: w.refundAsk(id),
    fields: [reasonField, { name: "restock", label: w.restock, type: "checkbox" }],
    act: (v) =>
      admin("POST", `/orders/${encodeURIComponent(id)}/refund`, { reason: v.reason, restock: v.restock !== undefined }),
    after: () => showLists(saleId),
  });
}
function askResend(id: string): void {
  ask({
    title: w.resend,
    words: id,
    fields: [reasonField],
    act: (v) => admin("POST", `/orders/${encodeURIComponent(id)}/mail`, { reason: v.reason }),
    after: () => showLists(saleId),
  });
}

/** Reads both again, of this sale. */
export async function showLists(of: string): Promise<void> {
  if (of === "") return;
  if (of !== saleId) orders = [];
  saleId = of;
  const [, page, log] = await Promise.all([
    showAttention(of, () => showLists(of)),
    ordersPage(null),
    admin<{ entries: Array<{ at: string; action: string; detail: Record<string, unknown> }> }>(
      "GET",
      `/log?saleId=${encodeURIComponent(of)}&limit=20`,
    ),
  ]);
  if (of !== saleId) return;
  // What was shown beyond the first page stays, unless the first page has it in a newer state.
  const newest = new Set(page.orders.map((o) => o.id));
  const older = orders.filter((o) => !newest.has(o.id));
  const isSameList = older.length > 0 && orders.length > ORDERS_PAGE;
  orders = isSameList ? [...page.orders, ...older] : page.orders;
  cursor = isSameList ? cursor : page.nextCursor;
  renderOrders();
  fillRows(
    find("#trail-rows"),
    log.entries.map((e, i) => ({
      key: `${e.at} ${i} ${e.action}`,
      cells: [
        new Date(e.at).toLocaleString(language),
        e.action,
        Object.entries(e.detail)
          .map(([name, value]) => `${name}: ${String(value)}`)
          .join(", "),
      ],
    })),
    w.noTrail,
  );
}
