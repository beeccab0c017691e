/** The order's page: what was bought, as it is recorded. */
import { formatInstant } from "../../domain/money.ts";
import { find, language, make, say } from "./dom.ts";
import { client, priceRows, tell, w, wordsOf } from "./shopper.ts";

async function showOrder(orderId: string): Promise<void> {
  const order = await client.order(orderId);
  say(find("#order-state"), w.orderStates[order.status] ?? order.status);
  find("#order-lines").replaceChildren(...priceRows(order, (l) => l.name ?? l.sku));
  const facts: Array<[string, string | undefined]> = [
    [w.orderedAt, formatInstant(order.confirmedAt, order.currency, language)],
    [w.payment, w.gateways[order.payment.gateway] ?? order.payment.gateway],
    [w.name, order.contact.name],
    [w.email, order.contact.email],
    [w.phone, order.contact.phone],
    [w.address, [order.shipTo?.postalCode, order.shipTo?.address].filter(Boolean).join(" ") || undefined],
  ];
  find("#order-facts").replaceChildren(
    ...facts.flatMap(([label, value]) => (value ? [make("dt", {}, label), make("dd", {}, value)] : [])),
  );
}

find("#print").addEventListener("click", () => print());
showOrder(find("#main").dataset.order ?? "").catch((error) => tell(wordsOf(error)));
