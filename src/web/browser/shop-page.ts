/** What the storefront's page shows of its state. */
import type { Reservation, Sale } from "../../client/index.ts";
import { formatInstant } from "../../domain/money.ts";
import { find, language, minutesAndSeconds, say } from "./dom.ts";
import { client, priceRows, w } from "./shopper.ts";

export interface Shop {
  saleId: string;
  sale: Sale | null;
  reservation: Reservation | null;
  /** Of a held reservation: the step that is shown. */
  step: "details" | "review";
  /** Item of the press that is on its way. */
  reserving: string | null;
  busy: boolean;
  /** The last request for the sale had no answer. */
  unreached: boolean;
}

let shown = "offer";

const SECTIONS = ["offer", "details", "review", "paying", "done"];
const STEP_OF: Record<string, number> = { offer: 0, details: 1, review: 2, paying: 2, done: 3 };

function sectionOf({ reservation, step }: Shop): string {
  switch (reservation?.status) {
    case "held":
      return step;
    case "paying":
      return "paying";
    case "confirmed":
      return "done";
    default:
      return "offer";
  }
}

/** One section at a time, chosen by the state of the reservation. */
export function renderShop(s: Shop): void {
  const section = sectionOf(s);
  for (const id of SECTIONS) find(`#${id}`).hidden = id !== section;
  for (const li of document.querySelectorAll<HTMLElement>(".steps li")) {
    if (Number(li.dataset.step) === STEP_OF[section]) li.setAttribute("aria-current", "step");
    else li.removeAttribute("aria-current");
  }
  if (section !== shown) {
    shown = section;
    // Moves the focus to the new heading, for those who cannot see the page change.
    if (section !== "offer") find(`#${section}-title`).focus();
    scrollTo({ top: 0 });
  }
  if (s.reservation && section !== "offer") renderReservation(s, s.reservation);
  renderSale(s);
  tick(s);
}

function renderReservation(s: Shop, r: Reservation): void {
  const nameOf = (line: { sku: string }) => s.sale?.items.find((i) => i.sku === line.sku)?.name ?? line.sku;
  for (const body of document.querySelectorAll("[data-lines]")) body.replaceChildren(...priceRows(r, nameOf));
  const p = r.payment;
  const state = find("#paying-state");
  if (p?.status === "queued" && p.position !== undefined)
    say(
      state,
      [w.inLine(p.position), ...(p.etaMs === undefined ? [] : [w.eta(minutesAndSeconds(p.etaMs))])].join(" · "),
    );
  else if (p?.status === "action_required") say(state, w.actionRequired);
  else if (p?.status === "unknown") say(state, w.unknown);
  else say(state, w.sending);
  const bank = find<HTMLAnchorElement>("#to-bank");
  bank.hidden = p?.status !== "action_required" || !isWeb(p.actionUrl);
  if (!bank.hidden) bank.href = p?.actionUrl ?? "";
  if (r.orderId) {
    say(find("#order-id"), r.orderId);
    find<HTMLAnchorElement>("#to-order").href =
      `/s/${encodeURIComponent(s.saleId)}/orders/${encodeURIComponent(r.orderId)}`;
  }
}
/** Nothing but a web address is followed, whatever a gateway says. */
export const isWeb = (url: string | undefined) => url !== undefined && /^https?:\/\//.test(url);

function renderSale({ sale, busy, reserving, unreached }: Shop): void {
  if (!sale) return;
  const now = client.clock.now();
  const opening = Date.parse(sale.opensAt);
  // The page knows the opening instant; nobody has to be asked for the button to come alive.
  const isOpen = sale.status === "open" || (sale.status === "scheduled" && now >= opening);
  const until = formatInstant(sale.closesAt, sale.currency, language);
  const status =
    sale.status === "closed"
      ? w.closed
      : sale.status === "paused"
        ? w.paused
        : isOpen
          ? `${w.openUntil} ${until}`
          : w.opensIn;
  say(find("#status-words"), unreached ? w.notReached : status);
  for (const item of sale.items) {
    const li = document.querySelector<HTMLElement>(`li[data-sku="${CSS.escape(item.sku)}"]`);
    if (!li) continue;
    const words = find("[data-availability]", li);
    words.dataset.availability = item.availability;
    say(words, availabilityOf(sale, item, isOpen));
    const button = find<HTMLButtonElement>("button", li);
    button.disabled = busy || !isOpen || item.availability !== "available";
    say(button, reserving === item.sku ? w.reserving : w.buy);
  }
}
export function availabilityOf(sale: Sale, item: Sale["items"][number], isOpen: boolean): string {
  if (item.availability === "sold_out") return w.soldOut;
  if (item.availability === "all_held") {
    const due = sale.nextReleaseAt ? Date.parse(sale.nextReleaseAt) - client.clock.now() : null;
    return due === null ? w.allHeld : `${w.allHeld} ${w.nextRelease(minutesAndSeconds(due))}`;
  }
  return isOpen ? `${w.available} · ${w.freeLeft(item.free)}` : `${w.notYet} · ${w.freeLeft(item.free)}`;
}

/** What moves with the clock, the service's and not this machine's. */
let wasOpen = false;
export function tick(s: Shop): void {
  const { sale, reservation } = s;
  const now = client.clock.now();
  const opensIn = sale?.status === "scheduled" ? Date.parse(sale.opensAt) - now : 0;
  say(find("#countdown"), opensIn > 0 ? minutesAndSeconds(opensIn) : "");
  const left = reservation?.expiresAt === undefined ? null : Date.parse(reservation.expiresAt) - now;
  for (const timer of document.querySelectorAll<HTMLElement>("[data-time-left]"))
    say(timer, left === null ? "" : minutesAndSeconds(left));
  const isOpen = sale !== null && opensIn <= 0;
  if (isOpen !== wasOpen || sale?.nextReleaseAt) {
    wasOpen = isOpen;
    renderSale(s);
  }
}
