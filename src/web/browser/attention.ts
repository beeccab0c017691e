/** The cockpit's payments on which a person has to decide: why, since when, and the ways out. */
import { formatMoney } from "../../domain/money.ts";
import { admin, w } from "./admin.ts";
import { ask } from "./ask.ts";
import { fillRows, find, language, make } from "./dom.ts";

type Action = "accept" | "refund" | "not_charged";
interface PaymentRow {
  reference: string;
  state: string;
  amount: number;
  currency: string;
  captured: { amount: number; currency: string } | null;
  why: string | null;
  since: string;
  orderId: string | null;
  actions: Action[];
}

function amountOf(p: PaymentRow): string {
  const asked = formatMoney(p.amount, p.currency, language);
  return p.captured ? `${asked} → ${formatMoney(p.captured.amount, p.captured.currency, language)}` : asked;
}

function askSettle(p: PaymentRow, action: Action, after: () => unknown): void {
  const reason = { name: "reason", label: w.reason, type: "text" as const };
  const restock = { name: "restock", label: w.restock, type: "checkbox" as const };
  ask({
    title: w.settle[action],
    words: `${w.settleAsk[action]} ${p.reference}: ${amountOf(p)}`,
    fields: action === "refund" && p.orderId !== null ? [reason, restock] : [reason],
    act: (v) =>
      admin("POST", `/payments/${encodeURIComponent(p.reference)}/settle`, {
        action,
        reason: v.reason,
        ...(p.orderId !== null && { restock: v.restock !== undefined }),
      }),
    after,
  });
}

export async function showAttention(saleId: string, after: () => unknown): Promise<void> {
  const { payments } = await admin<{ payments: PaymentRow[] }>(
    "GET",
    `/payments?saleId=${encodeURIComponent(saleId)}&attention=true&limit=200`,
  );
  find("#attention").hidden = payments.length === 0;
  fillRows(
    find("#attention-rows"),
    payments.map((p) => ({
      key: `${p.reference} ${p.state} ${p.actions.join()}`,
      cells: [p.reference, new Date(p.since).toLocaleString(language), p.why ?? "", amountOf(p), p.state],
      actions: () =>
        p.actions.map((action) =>
          make(
            "button",
            { type: "button", "data-settle": `${p.reference} ${action}`, click: () => askSettle(p, action, after) },
            w.settle[action],
          ),
        ),
    })),
  );
}
