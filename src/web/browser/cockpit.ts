/** The cockpit's script: shows what `GET /v1/admin/events` says, and acts through the admin routes. */

import { formatInstant } from "../../domain/money.ts";
import type { Point } from "../../http/live.ts";
import type { Rates } from "../../http/request-rates.ts";
import type { SaleFigures } from "../../http/sale-figures.ts";
import type { Audit } from "../../recover/audit.ts";
import { admin, w } from "./admin.ts";
import { ask, type Question } from "./ask.ts";
import { makeCharts } from "./charts.ts";
import { fillRows, fillSelect, find, language, make, minutesAndSeconds, say } from "./dom.ts";
import { moreOrders, showLists } from "./orders.ts";

// ---- the figures ----

let sales: SaleFigures[] = [];
let chosen = new URLSearchParams(location.search).get("sale") ?? "";
let points: Point[] = [];
const drawCharts = makeCharts();
const saleNow = () => sales.find((s) => s.id === chosen);

function renderSale(): void {
  // The newest sale is the one an operator came for.
  if (!saleNow()) chosen = sales.at(-1)?.id ?? "";
  fillSelect(
    find("#sale"),
    sales.map((s) => [s.id, `${s.name} (${s.id})`]),
    chosen,
  );
  const s = saleNow();
  if (!s) return;
  const left = Date.parse(s.opensAt) - Date.parse(s.serverTime);
  const times = `${formatInstant(s.opensAt, s.currency, language)} – ${formatInstant(s.closesAt, s.currency, language)}`;
  say(
    find("#sale-state"),
    [w.statuses[s.status] ?? s.status, ...(left > 0 ? [`${w.opensIn} ${minutesAndSeconds(left)}`] : []), times].join(
      " · ",
    ),
  );
  fillRows(
    find("#stock-rows"),
    s.items.map((i) => ({
      key: `${s.id} ${i.sku}`,
      cells: [
        `${i.name ?? ""} (${i.sku})`,
        ...[i.granted, i.free, i.held, Math.max(0, i.claimed - i.sold), i.sold].map(String),
      ],
      actions: () => [make("button", { type: "button", "data-top-up": i.sku, click: () => askTopUp(i.sku) }, w.topUp)],
    })),
  );
  fillRows(
    find("#gate-rows"),
    s.gates.map((g) => ({
      key: g.gateway,
      cells: [
        g.gateway,
        `${g.inFlight} / ${g.limit}`,
        w.permitsBy(g.permits),
        String(g.line),
        g.line > 0 ? minutesAndSeconds(g.waitMs) : "0:00",
        w.breakerStates[g.breaker] ?? g.breaker,
      ],
    })),
  );
  const p = s.payments;
  const lag = (n: number, oldestMs: number) => (n > 0 ? `${n} (${(oldestMs / 1000).toFixed(1)} s)` : "0");
  const tiles: Array<[id: string, text: string, bad: boolean]> = [
    ["lag-journal", lag(s.journal.length, s.journal.oldestMs), s.journal.oldestMs > 10_000],
    ["lag-outbox", lag(s.outbox?.queued ?? 0, s.outbox?.oldestMs ?? 0), false],
    ["mails-failed", String(s.outbox?.failed ?? 0), (s.outbox?.failed ?? 0) > 0],
    [
      "open-payments",
      String((p?.queued ?? 0) + (p?.sending ?? 0) + (p?.action_required ?? 0) + (p?.unknown ?? 0)),
      false,
    ],
    ["open-unknown", String(p?.unknown ?? 0), (p?.unknown ?? 0) > 0],
    ["open-refunding", String(p?.refunding ?? 0), false],
    ["open-attention", String(p?.attention ?? 0), (p?.attention ?? 0) > 0],
  ];
  for (const [id, text, bad] of tiles) {
    say(find(`#${id}`), text);
    find(`#${id}`).dataset.bad = String(bad);
  }
  for (const [id, switched, on] of [
    ["#reserving", "#switch-reserving", s.reserving === "on"],
    ["#paying-switch", "#switch-paying", s.paying === "on"],
  ] as const) {
    say(find(id), on ? w.on : w.off);
    find(id).dataset.bad = String(!on);
    say(find(switched), on ? w.pause : w.resume);
    find<HTMLButtonElement>(switched).disabled = false;
  }
  find<HTMLAnchorElement>("#certificate").href = `/admin/sales/${encodeURIComponent(s.id)}/certificate`;
  find<HTMLAnchorElement>("#csv").href = `/v1/admin/orders?format=csv&saleId=${encodeURIComponent(s.id)}`;
  fillSelect(
    find("#chart-item"),
    [["", w.allItems], ...s.items.map((i): [string, string] => [i.sku, i.name ?? i.sku])],
    find<HTMLSelectElement>("#chart-item").value,
  );
}

function renderRates(r: Rates | undefined): void {
  for (const name of ["requests", "granted", "refused", "shed", "failed"] as const)
    say(find(`#rate-${name}`), r ? String(r[name]) : "–");
}

let books: Audit[] = [];
/** By the service's clock, as the readings of the books. */
let seenMs = 0;
const BOOKS_MS_MAX = 60_000;
function renderBooks(): void {
  const read = books.find((b) => b.saleId === chosen);
  // What was fine a while ago is not known to be fine: a light without a fresh reading is off.
  const a = read && seenMs - Date.parse(read.at) < BOOKS_MS_MAX ? read : undefined;
  const light = (id: string, ok: boolean | null, figures: string) => {
    const card = find(`#${id}`);
    card.dataset.state = ok === null ? "none" : ok ? "ok" : "bad";
    say(find(".verdict", card), ok === null ? w.notRead : ok ? w.ok : w.notOk);
    say(find(".figures", card), figures);
  };
  if (!a) {
    for (const id of ["light-stock", "light-charges", "light-mails"]) light(id, null, "");
    say(find("#books-at"), "");
    return;
  }
  const off = a.items.reduce((sum, i) => sum + Math.abs(i.difference), 0);
  light("light-stock", off === 0, w.stockFigures(off));
  const { withoutOrder, twice, amountDiffers, refundedUnasked } = a.charges;
  const { withoutCharge } = a.orders;
  light(
    "light-charges",
    withoutOrder + twice + amountDiffers + withoutCharge + refundedUnasked === 0,
    w.chargeFigures({
      withoutOrder,
      twice,
      amountDiffers,
      withoutCharge,
      refundedUnasked,
      attention: a.open.attention,
    }),
  );
  light("light-mails", a.mails.withoutOrder === 0, w.mailFigures(a.mails.withoutOrder, a.mails.sent, a.mails.queued));
  say(find("#books-at"), w.readAt(new Date(a.at).toLocaleTimeString(language)));
}

// ---- what operators do ----

const salePath = () => `/sales/${encodeURIComponent(chosen)}`;
const patch = (body: unknown) => admin("PATCH", salePath(), body);
/** The trail has it then. */
const askAndShow = (question: Question) => ask({ ...question, after: () => showLists(chosen) });

function askTopUp(sku: string): void {
  askAndShow({
    title: `${w.topUp}: ${sku}`,
    fields: [
      { name: "delta", label: w.delta, type: "number", value: "10" },
      { name: "reason", label: w.reason, type: "text" },
    ],
    act: (v, key) =>
      admin(
        "POST",
        `${salePath()}/items/${encodeURIComponent(sku)}/stock`,
        { delta: Number(v.delta), reason: v.reason },
        { "idempotency-key": key },
      ),
  });
}

function startActions(): void {
  const onPress = (selector: string, f: () => void) => find(selector).addEventListener("click", f);
  onPress("#switch-reserving", () => {
    const on = saleNow()?.reserving === "on";
    askAndShow({
      title: `${w.reservingNow}: ${on ? w.pause : w.resume}`,
      act: () => patch({ reserving: on ? "off" : "on" }),
    });
  });
  onPress("#switch-paying", () => {
    const on = saleNow()?.paying === "on";
    askAndShow({
      title: `${w.payingNow}: ${on ? w.pause : w.resume}`,
      act: () => patch({ paying: on ? "off" : "on" }),
    });
  });
  onPress("#extend", () =>
    askAndShow({
      title: w.extend,
      fields: [{ name: "minutes", label: w.minutes, type: "number", value: "10" }],
      act: (v) => patch({ extendHoldsMs: Math.round(Number(v.minutes) * 60_000) }),
    }),
  );
  onPress("#close", () =>
    askAndShow({ title: w.close, words: w.closeAsk, act: () => patch({ closesAt: saleNow()?.serverTime }) }),
  );
  onPress("#reconcile", () =>
    askAndShow({
      title: w.reconcile,
      async act() {
        const done = await admin<Record<string, number>>("POST", `${salePath()}/reconcile`);
        const counts = Object.entries(done).filter(([, n]) => n > 0);
        find("#said").title = counts.map(([name, n]) => `${name} ${n}`).join(", ");
      },
    }),
  );
  onPress("#more-orders", () => void moreOrders());
  find("#sale").addEventListener("change", (event) => {
    chosen = (event.target as HTMLSelectElement).value;
    history.replaceState(null, "", `?sale=${encodeURIComponent(chosen)}`);
    renderAll();
    void showLists(chosen);
  });
  find("#chart-item").addEventListener("change", renderCharts);
}

// ---- live ----

const POINTS_MAX = 900;
let soldBefore = "";

const renderCharts = () => drawCharts(points, saleNow(), find<HTMLSelectElement>("#chart-item").value);

function renderAll(): void {
  renderSale();
  renderBooks();
  renderCharts();
}

function heard(event: string, data: string): void {
  if (event === "history") {
    points = JSON.parse(data) as Point[];
  } else if (event === "books") {
    books = JSON.parse(data) as Audit[];
    renderBooks();
  } else {
    const f = JSON.parse(data) as {
      at: string;
      sales?: SaleFigures[];
      rates?: Rates;
      point?: Point;
      unavailable?: string;
      /** Sales that stand until a person has looked, each with why. */
      stopped?: string[];
    };
    if (f.unavailable !== undefined) {
      live("bad", `${w.storesAway}: ${f.unavailable}`);
      return;
    }
    if (f.stopped && f.stopped.length > 0) live("bad", f.stopped.join(" "));
    else live("ok", w.live);
    seenMs = Date.parse(f.at);
    sales = f.sales ?? [];
    if (f.point) points = [...points, f.point].slice(-POINTS_MAX);
    renderRates(f.rates);
    const before = chosen;
    renderAll();
    // Orders are read again when there are other ones.
    const sold = JSON.stringify([
      chosen,
      saleNow()?.items.map((i) => i.sold),
      saleNow()?.payments?.refunding,
      saleNow()?.payments?.attention,
    ]);
    if (sold !== soldBefore || before !== chosen) {
      soldBefore = sold;
      void showLists(chosen).catch(() => {});
    }
  }
}

function live(state: "ok" | "bad", words: string): void {
  const at = find("#live");
  at.dataset.state = state;
  say(at, words);
}

/** EventSource reconnects by itself, and sends the session's cookie along. */
function listen(): void {
  const events = new EventSource("/v1/admin/events");
  for (const name of ["history", "figures", "books"])
    events.addEventListener(name, (e) => heard(name, (e as MessageEvent<string>).data));
  events.addEventListener("error", () => {
    live("bad", w.lostConnection);
    if (events.readyState !== EventSource.CLOSED) return;
    // Refused, not lost: the session may be over, which asking tells.
    events.close();
    setTimeout(() => void admin("GET", "/sales").then(listen, listen), 2_000);
  });
}

startActions();
listen();
