/** The form of a new sale. */
import { admin, Refused, w } from "./admin.ts";
import { find, make, say } from "./dom.ts";

const ITEM_FIELDS = [
  ["sku", w.sku, "text", ""],
  ["itemName", w.itemName, "text", ""],
  ["unitPrice", w.unitPrice, "number", "1000"],
  ["taxPercent", w.taxPercent, "number", "10"],
  ["stock", w.stockField, "number", "100"],
] as const;
let itemRows = 0;

function addItem(): void {
  const n = ++itemRows;
  const row = make("div", { class: "row item", role: "group", "aria-label": `${w.item} ${n}` });
  for (const [name, label, type, value] of ITEM_FIELDS) {
    const id = `${name}-${n}`;
    row.append(
      make(
        "p",
        { class: "field" },
        make("label", { for: id }, label),
        make("input", { id, name, type, value, required: true }),
      ),
    );
  }
  row.append(make("button", { type: "button", click: () => row.remove() }, w.removeItem));
  find("#item-rows").append(row);
}

function saleOf(form: HTMLFormElement): Record<string, unknown> {
  const data = new FormData(form);
  const text = (name: string) => String(data.get(name) ?? "").trim();
  const optional = (name: string) => text(name) || undefined;
  const instant = (name: string) => (text(name) ? new Date(text(name)).toISOString() : "");
  const rows = [...form.querySelectorAll<HTMLElement>(".item")];
  const of = (row: HTMLElement, name: string) => find<HTMLInputElement>(`[name="${name}"]`, row).value.trim();
  const shop = {
    name: optional("shopName"),
    address: optional("shopAddress"),
    phone: optional("shopPhone"),
    email: optional("shopEmail"),
    invoiceNumber: optional("invoiceNumber"),
  };
  const terms = {
    payment: optional("termsPayment"),
    delivery: optional("termsDelivery"),
    cancellation: optional("termsCancellation"),
    notes: optional("termsNotes"),
  };
  const any = (o: Record<string, unknown>) => (Object.values(o).some((v) => v !== undefined) ? o : undefined);
  return {
    id: text("id"),
    name: text("name"),
    currency: text("currency"),
    opensAt: instant("opensAt"),
    closesAt: instant("closesAt"),
    holdMs: Math.round(Number(text("holdMinutes")) * 60_000),
    maxUnitsPerCustomer: Number(text("limit")),
    shippingFee: Number(text("shippingFee")),
    gateways: data.getAll("gateways"),
    language: optional("language"),
    shop: any(shop),
    terms: any(terms),
    items: rows.map((row) => ({
      sku: of(row, "sku"),
      name: of(row, "itemName"),
      unitPrice: Number(of(row, "unitPrice")),
      taxPercent: Number(of(row, "taxPercent")),
      stock: Number(of(row, "stock")),
    })),
  };
}

/** A Date as `datetime-local` wants it: this browser's wall clock. */
const wall = (at: Date) => new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);

function startNewSale(): void {
  const form = find<HTMLFormElement>("#sale-form");
  const problem = find("#problem");
  const opens = new Date(Math.ceil(Date.now() / 3_600_000) * 3_600_000);
  find<HTMLInputElement>("#opensAt").value = wall(opens);
  find<HTMLInputElement>("#closesAt").value = wall(new Date(opens.getTime() + 86_400_000));
  addItem();
  find("#add-item").addEventListener("click", addItem);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!form.reportValidity()) return;
    problem.hidden = true;
    try {
      const made = await admin<{ id: string }>("POST", "/sales", saleOf(form));
      location.assign(`/admin?sale=${encodeURIComponent(made.id)}`);
    } catch (error) {
      problem.hidden = false;
      const errors = error instanceof Refused ? error.body.errors : undefined;
      say(
        problem,
        errors?.map((e) => `${e.path}: ${e.message}`).join("; ") ?? (error instanceof Error ? error.message : w.failed),
      );
      problem.scrollIntoView();
    }
  });
}

startNewSale();
