/**
 * The storefront's script, and an example to copy: it uses the public API alone, through the client. What makes it safe
 * to press twice, to reload or to close the tab is small: the idempotency key is kept before it is sent, and what has
 * become of a reservation is always asked of the service, never remembered.
 */
import { type ConfirmRequest, FukubukuroError, type Reservation } from "../../client/index.ts";
import { find, keep, kept, make, newKey, say } from "./dom.ts";
import { availabilityOf, isWeb, renderShop, type Shop, tick } from "./shop-page.ts";
import { client, forgetShopper, tell, w, wordsOf } from "./shopper.ts";

const saleId = find("#main").dataset.sale ?? "";

// ---- the attempt: kept from before the first press is sent until the shopper begins anew ----

interface Attempt {
  key: string;
  sku: string;
  quantity: number;
  /** Known once an answer came. */
  id?: string;
}
const ATTEMPT = `fukubukuro.attempt.${saleId}`;
let attempt = kept<Attempt>(localStorage, ATTEMPT);
function setAttempt(next: Attempt | null): void {
  attempt = next;
  keep(localStorage, ATTEMPT, next);
}

// ---- what the page shows (shop-page.ts) ----

const shop: Shop = {
  saleId,
  sale: null,
  reservation: null,
  step: "details",
  reserving: null,
  busy: false,
  unreached: false,
};
const render = () => renderShop(shop);

// ---- what the service says ----

/** How often an open page asks: a top-up is seen within a second. */
const POLL_MS = 600;
let watching: AbortController | null = null;

async function watchSale(): Promise<void> {
  watching?.abort();
  watching = new AbortController();
  const before = new Map<string, string>();
  const onTrouble = () => {
    shop.unreached = true;
    render();
  };
  for await (const next of client.watch(saleId, { everyMs: POLL_MS, signal: watching.signal, onTrouble })) {
    shop.sale = next;
    shop.unreached = false;
    for (const i of next.items) {
      const was = before.get(i.sku);
      if (was !== undefined && was !== i.availability)
        say(find("#news"), `${i.name}: ${availabilityOf(next, i, true)}`);
      before.set(i.sku, i.availability);
    }
    render();
  }
}

let following: AbortController | null = null;
/** Follows a reservation until its end, over lost connections and restarts. */
async function follow(id: string): Promise<void> {
  following?.abort();
  following = new AbortController();
  const { signal } = following;
  try {
    for await (const r of client.events(id, { signal })) adopt(r);
  } catch (error) {
    if (signal.aborted) return;
    // Only a definite answer comes here, such as HOLD_LOST.
    shop.reservation = null;
    setAttempt(null);
    tell(wordsOf(error));
    render();
  }
}

/** The reservation in its present state. */
function adopt(r: Reservation): void {
  const before = shop.reservation;
  shop.reservation = r;
  if (r.status === "held" && r.payment?.status === "declined") {
    if (before?.payment?.status !== "declined" || before.payment.id !== r.payment.id) {
      shop.step = "details";
      tell(w.declined(r.payment.declineCode ?? ""));
    }
  } else if (r.status === "held" && before?.status === "paying") {
    shop.step = "details";
    tell(w.waitedTooLong);
  } else if (r.status === "paying" || r.status === "confirmed") tell("");
  if (r.status === "expired" || r.status === "released") {
    setAttempt(null);
    tell(r.status === "expired" ? w.expired : w.released);
  }
  render();
}

// ---- what the shopper does ----

async function buy(sku: string, quantity: number): Promise<void> {
  if (shop.busy) return;
  shop.busy = true;
  shop.reserving = sku;
  tell("");
  // The same press again is the same key; another wish is another one.
  if (!attempt || attempt.id || attempt.sku !== sku || attempt.quantity !== quantity)
    setAttempt({ key: newKey(), sku, quantity });
  render();
  try {
    await reserve(attempt as Attempt);
  } catch (error) {
    // A refusal is definite: nothing was taken. No answer is not: the key stays for the next press, or for the next
    // load of the page.
    if (error instanceof FukubukuroError && error.status >= 400 && error.status < 500 && error.status !== 429)
      setAttempt(null);
    tell(wordsOf(error));
  } finally {
    shop.busy = false;
    shop.reserving = null;
    render();
  }
}

async function reserve(a: Attempt): Promise<void> {
  const r = await client.reserve(saleId, { lines: [{ sku: a.sku, quantity: a.quantity }], idempotencyKey: a.key });
  setAttempt({ ...a, id: r.id });
  shop.step = "details";
  adopt(r);
  void follow(r.id);
}

const form = find<HTMLFormElement>("#details-form");
const DETAILS = "fukubukuro.details";
const field = (name: string) => form.elements.namedItem(name) as HTMLInputElement | null;
const entered = (name: string) => (new FormData(form).get(name) as string | null)?.trim() ?? "";

function requestOf(): ConfirmRequest {
  const gateway = entered("gateway");
  const optional = (name: string) => entered(name) || undefined;
  return {
    payment: gateway === "sandbox" ? { gateway, token: entered("token") } : { gateway },
    contact: { email: entered("email"), name: entered("name"), phone: optional("phone") },
    shipTo: { postalCode: optional("postalCode"), address: optional("address") },
    returnUrl: location.origin + location.pathname,
  };
}

function review(): void {
  for (const name of ["name", "email"]) {
    const input = field(name);
    input?.setAttribute("aria-invalid", String(!input.checkValidity()));
  }
  if (!form.reportValidity()) return;
  tell("");
  const request = requestOf();
  keep(sessionStorage, DETAILS, Object.fromEntries(new FormData(form)));
  const { contact, shipTo } = request;
  const lines = [contact.name, contact.email, contact.phone, shipTo?.postalCode, shipTo?.address].filter(
    (l) => l !== undefined,
  );
  find("#review-contact").replaceChildren(...lines.map((l) => make("span", { class: "line" }, l)));
  const payment = find("#review-payment");
  const gateway = request.payment.gateway ?? "";
  const about = [w.gateways[gateway] ?? gateway, w.paymentTimes[gateway], payment.dataset.own].filter(
    (l) => l !== undefined,
  );
  payment.replaceChildren(...about.map((l) => make("span", { class: "line" }, l)));
  shop.step = "review";
  render();
}

async function pay(): Promise<void> {
  const { reservation } = shop;
  if (shop.busy || !reservation) return;
  shop.busy = true;
  tell("");
  const button = find<HTMLButtonElement>("#pay");
  button.disabled = true;
  const { id } = reservation;
  try {
    const r = await client.confirmAndWait(id, requestOf(), { onChange: adopt });
    if (r.payment?.status === "action_required" && isWeb(r.payment.actionUrl))
      location.assign(r.payment.actionUrl as string);
  } catch (error) {
    const e = error instanceof FukubukuroError ? error : null;
    // A decline comes with the reservation. An unknown outcome is followed, and never shown as failed.
    if (e?.code === "PAYMENT_DECLINED") adopt((e.problem.reservation as Reservation | undefined) ?? reservation);
    else tell(wordsOf(error));
    if (e && e.status === 410) {
      shop.reservation = null;
      setAttempt(null);
    }
  } finally {
    shop.busy = false;
    button.disabled = false;
    render();
    if (shop.reservation) void follow(id);
  }
}

async function release(): Promise<void> {
  const { reservation } = shop;
  if (!reservation || shop.busy) return;
  shop.busy = true;
  try {
    following?.abort();
    adopt(await client.release(reservation.id));
  } catch (error) {
    tell(wordsOf(error));
    void follow(reservation.id);
  } finally {
    shop.busy = false;
    render();
  }
}

function again(): void {
  following?.abort();
  shop.reservation = null;
  setAttempt(null);
  tell("");
  render();
}

/**
 * What the shopper has already: the kept attempt, else a live hold of another tab or from before the data was cleared.
 * The button stays off until that is known, however long it takes: a second press would be a second bag.
 */
async function comeBack(): Promise<void> {
  shop.busy = attempt !== null;
  const mine = await whatIsMine();
  shop.busy = false;
  render();
  const found =
    mine.find((r) => r.id === attempt?.id) ?? mine.find((r) => r.status === "held" || r.status === "paying");
  if (found) {
    adopt(found);
    void follow(found.id);
  } else if (attempt?.id) {
    // It existed before: ask for it by its id.
    void follow(attempt.id);
  } else if (attempt) {
    // The press was sent and its answer never came. The same key says what it did.
    await buy(attempt.sku, attempt.quantity);
  }
}

const ASK_AGAIN_MS = 1_000;
/** Asked until there is an answer; the client itself has tried for a while before it says that there is none. */
async function whatIsMine(): Promise<Reservation[]> {
  for (;;) {
    try {
      const mine = await client.reservations(saleId);
      tell("");
      return mine;
    } catch (error) {
      if (error instanceof FukubukuroError && error.code === "UNAUTHENTICATED") {
        // Somebody new has nothing to come back to.
        forgetShopper();
        setAttempt(null);
        return [];
      }
      tell(wordsOf(error));
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
    }
  }
}

function startSale(): void {
  for (const li of document.querySelectorAll<HTMLElement>("li[data-sku]")) {
    find("button", li).addEventListener(
      "click",
      () => void buy(li.dataset.sku ?? "", Number(find<HTMLSelectElement>("select", li).value)),
    );
  }
  const before = kept<Record<string, string>>(sessionStorage, DETAILS) ?? {};
  for (const name of ["name", "email", "phone", "postalCode", "address"]) {
    const input = field(name);
    if (input && before[name]) input.value = before[name];
  }
  form.addEventListener("change", () => {
    const card = document.querySelector<HTMLElement>("#test-card");
    if (card) card.hidden = entered("gateway") !== "sandbox";
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    review();
  });
  find("#pay").addEventListener("click", () => void pay());
  find("#back").addEventListener("click", () => {
    shop.step = "details";
    render();
  });
  for (const button of document.querySelectorAll("[data-release]"))
    button.addEventListener("click", () => void release());
  find("#buy-more").addEventListener("click", again);
  document.addEventListener("visibilitychange", () => {
    // A page that nobody sees asks nothing; what it shows is looked up when it is seen again.
    if (document.hidden) watching?.abort();
    else void watchSale();
  });
  setInterval(() => tick(shop), 250);
  void watchSale();
  void comeBack();
}

startSale();
