/** The cockpit's script: shows what `GET /v1/admin/events` says, and acts through the admin routes. */
import uPlot from "uplot";
import type { Figures, Point, Rates } from "../../figures.ts";
import { formatInstant, formatMoney } from "../../money.ts";
import type { Audit } from "../../recover/audit.ts";
import { admin, newKey, Refused, w } from "./admin.ts";
import { find, language, make, minutesAndSeconds, say } from "./dom.ts";

// ---- asking before acting ----

interface Question {
  title: string;
  words?: string;
  fields?: Array<{ name: string; label: string; type: "text" | "number" | "checkbox"; value?: string }>;
  /** Throws to keep the question open with what went wrong. */
  act(values: Record<string, string>, key: string): Promise<unknown>;
}
function ask(question: Question): void {
  const dialog = find<HTMLDialogElement>("#ask");
  const form = find<HTMLFormElement>("#ask-form");
  const problem = find("#ask-problem");
  const yes = find<HTMLButtonElement>("#ask-yes");
  const key = newKey();
  say(find("#ask-title"), question.title);
  say(find("#ask-words"), question.words ?? "");
  problem.hidden = true;
  yes.disabled = false;
  find("#ask-fields").replaceChildren(
    ...(question.fields ?? []).map((f) => {
      const id = `ask-${f.name}`;
      const input = make("input", { id, name: f.name, type: f.type, required: f.type !== "checkbox", ...(f.value !== undefined && { value: f.value }) });
      return f.type === "checkbox"
        ? make("p", {}, make("label", { for: id }, input, ` ${f.label}`))
        : make("p", { class: "field" }, make("label", { for: id }, f.label), input);
    }),
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    yes.disabled = true;
    problem.hidden = true;
    try {
      const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value)]));
      await question.act(values, key);
      dialog.close();
      say(find("#said"), `${question.title}: ${w.done}`);
      void refreshLists();
    } catch (error) {
      problem.hidden = false;
      say(problem, error instanceof Refused ? error.message : w.noAnswer);
    } finally {
      yes.disabled = false;
    }
  };
  find("#ask-no").onclick = () => dialog.close();
  dialog.showModal();
}

// ---- the figures ----

let sales: Figures[] = [];
let chosen = new URLSearchParams(location.search).get("sale") ?? "";
let points: Point[] = [];
const saleNow = () => sales.find((s) => s.id === chosen);

/** Keeps the options of a select in line with a list, without taking the choice away. */
function fillSelect(select: HTMLSelectElement, options: Array<[value: string, label: string]>, value: string): void {
  const text = JSON.stringify(options);
  if (select.dataset.options !== text) {
    select.dataset.options = text;
    select.replaceChildren(...options.map(([v, label]) => make("option", { value: v }, label)));
  }
  if (select.value !== value) select.value = value;
}

/** Rows by key: a row that is there is changed in place, so that a button is never taken from under a finger. */
function fillRows(body: HTMLElement, rows: Array<{ key: string; cells: string[]; actions?: () => HTMLElement[] }>): void {
  const before = new Map([...body.children].map((tr) => [(tr as HTMLElement).dataset.key ?? "", tr as HTMLTableRowElement]));
  for (const [i, row] of rows.entries()) {
    let tr = before.get(row.key);
    before.delete(row.key);
    if (!tr) {
      tr = make("tr", { "data-key": row.key }, make("th", { scope: "row" }), ...row.cells.slice(1).map(() => make("td")));
      if (row.actions) tr.append(make("td", { class: "do" }, ...row.actions()));
    }
    for (const [n, text] of row.cells.entries()) say(tr.children[n] as HTMLElement, text);
    if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] ?? null);
  }
  for (const old of before.values()) old.remove();
}

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
  say(find("#sale-state"), [w.statuses[s.status] ?? s.status, ...(left > 0 ? [`${w.opensIn} ${minutesAndSeconds(left)}`] : []), times].join(" · "));
  fillRows(
    find("#stock-rows"),
    s.items.map((i) => ({
      key: `${s.id} ${i.sku}`,
      cells: [`${i.name ?? ""} (${i.sku})`, ...[i.granted, i.free, i.held, Math.max(0, i.claimed - i.sold), i.sold].map(String)],
      actions: () => [make("button", { type: "button", "data-topup": i.sku, click: () => askTopUp(i.sku) }, w.topUp)],
    })),
  );
  fillRows(
    find("#gate-rows"),
    s.gates.map((g) => ({
      key: g.gateway,
      cells: [
        g.gateway,
        `${g.inFlight} / ${g.limit}`,
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
    ["open-payments", String((p?.queued ?? 0) + (p?.sending ?? 0) + (p?.action_required ?? 0) + (p?.unknown ?? 0)), false],
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
  for (const name of ["requests", "granted", "refused", "shed", "failed"] as const) say(find(`#rate-${name}`), r ? String(r[name]) : "–");
}

let books: Audit[] = [];
function renderBooks(): void {
  const a = books.find((b) => b.saleId === chosen);
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
  const { withoutOrder, twice, amountDiffers } = a.charges;
  light(
    "light-charges",
    withoutOrder + twice + amountDiffers + a.orders.withoutCharge === 0,
    w.chargeFigures(withoutOrder, twice, amountDiffers, a.orders.withoutCharge),
  );
  light("light-mails", a.mails.withoutOrder === 0, w.mailFigures(a.mails.withoutOrder, a.mails.sent, a.mails.queued));
  say(find("#books-at"), w.readAt(new Date(a.at).toLocaleTimeString(language)));
}

// ---- the charts ----

const COLOURS = {
  free: "#2a9d8f",
  held: "#e9c46a",
  inPayment: "#f4a261",
  sold: "#c1121f",
  requests: "#264653",
  granted: "#2a9d8f",
  refused: "#b8860b",
  shed: "#c1121f",
};
const CHART_HEIGHT = 240;
const RATES = ["requests", "granted", "refused", "shed"] as const;
const GAP_MS = 4_000;

function chart(selector: string, series: Array<{ label: string; colour: string; fill: boolean }>): uPlot {
  const place = find(selector);
  const plot = new uPlot(
    {
      width: Math.max(280, place.clientWidth),
      height: CHART_HEIGHT,
      legend: { live: false },
      cursor: { show: false },
      scales: { y: { range: (_u, _min, max) => [0, Math.max(1, max * 1.05)] } },
      axes: [{ space: 80, values: (_u, splits) => splits.map((at) => new Date(at * 1000).toLocaleTimeString(language, { hour12: false })) }, { size: 56 }],
      series: [{}, ...series.map((s) => ({ label: s.label, stroke: s.colour, width: 1, points: { show: false }, ...(s.fill && { fill: s.colour }) }))],
    },
    [[]],
    place,
  );
  new ResizeObserver(() => plot.setSize({ width: Math.max(280, place.clientWidth), height: CHART_HEIGHT })).observe(place);
  return plot;
}

let unitsChart: uPlot;
let ratesChart: uPlot;

function renderCharts(): void {
  const sku = find<HTMLSelectElement>("#chart-item").value;
  const index = saleNow()?.items.findIndex((i) => i.sku === sku) ?? -1;
  const at: number[] = [];
  // Sold at the bottom, then in payment, held, free: the top line is what was granted. Drawn from the tallest to the shortest.
  const layers: Array<Array<number | null>> = [[], [], [], []];
  const rates: Array<Array<number | null>> = RATES.map(() => []);
  const add = (atMs: number, units: Array<number | null>, perSecond: Array<number | null>) => {
    at.push(atMs / 1000);
    for (const [k, layer] of layers.entries()) layer.push(units[k] ?? null);
    for (const [k, rate] of rates.entries()) rate.push(perSecond[k] ?? null);
  };
  for (const [n, p] of points.entries()) {
    // Nobody watched: nothing is known, and nothing is drawn.
    if (n > 0 && p.atMs - (points[n - 1] as Point).atMs > GAP_MS) add(p.atMs - 1, [], []);
    const all = p.units[chosen];
    const items = (index >= 0 ? all?.slice(index, index + 1) : all) ?? [];
    const [free, held, paying, sold] = items.reduce<number[]>((sum, i) => sum.map((u, k) => u + (i[k] ?? 0)), [0, 0, 0, 0]) as [number, number, number, number];
    const stacked = [sold + paying + held + free, sold + paying + held, sold + paying, sold];
    add(
      p.atMs,
      all ? stacked : [],
      RATES.map((name) => p.rates[name]),
    );
  }
  unitsChart.setData([at, ...layers]);
  ratesChart.setData([at, ...rates]);
  const s = saleNow();
  if (s) {
    const sum = (f: (i: Figures["items"][number]) => number) => s.items.reduce((n, i) => n + f(i), 0);
    const now = [
      `${w.free} ${sum((i) => i.free)}`,
      `${w.held} ${sum((i) => i.held)}`,
      `${w.inPayment} ${sum((i) => Math.max(0, i.claimed - i.sold))}`,
      `${w.sold} ${sum((i) => i.sold)}`,
    ];
    find("#units-chart").setAttribute("aria-label", `${w.unitsOverTime}: ${now.join(", ")}`);
  }
}

// ---- what operators do ----

const salePath = () => `/sales/${encodeURIComponent(chosen)}`;
const patch = (body: unknown) => admin("PATCH", salePath(), body);
const reasonField = { name: "reason", label: w.reason, type: "text" as const };

function askTopUp(sku: string): void {
  ask({
    title: `${w.topUp}: ${sku}`,
    fields: [{ name: "delta", label: w.delta, type: "number", value: "10" }, reasonField],
    act: (v, key) =>
      admin("POST", `${salePath()}/items/${encodeURIComponent(sku)}/stock`, { delta: Number(v.delta), reason: v.reason }, { "idempotency-key": key }),
  });
}

function startActions(): void {
  const onPress = (selector: string, f: () => void) => find(selector).addEventListener("click", f);
  onPress("#switch-reserving", () => {
    const on = saleNow()?.reserving === "on";
    ask({ title: `${w.reservingNow}: ${on ? w.pause : w.resume}`, act: () => patch({ reserving: on ? "off" : "on" }) });
  });
  onPress("#switch-paying", () => {
    const on = saleNow()?.paying === "on";
    ask({ title: `${w.payingNow}: ${on ? w.pause : w.resume}`, act: () => patch({ paying: on ? "off" : "on" }) });
  });
  onPress("#extend", () =>
    ask({
      title: w.extend,
      fields: [{ name: "minutes", label: w.minutes, type: "number", value: "10" }],
      act: (v) => patch({ extendHoldsMs: Math.round(Number(v.minutes) * 60_000) }),
    }),
  );
  onPress("#close", () => ask({ title: w.close, words: w.closeAsk, act: () => patch({ closesAt: saleNow()?.serverTime }) }));
  onPress("#reconcile", () =>
    ask({
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
    void refreshLists();
  });
  find("#chart-item").addEventListener("change", renderCharts);
}

// ---- orders and the trail ----

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

const ordersPage = (after: string | null) =>
  admin<{ orders: OrderRow[]; nextCursor: string | null }>(
    "GET",
    `/orders?saleId=${encodeURIComponent(chosen)}&limit=${ORDERS_PAGE}${after ? `&cursor=${encodeURIComponent(after)}` : ""}`,
  );

async function moreOrders(): Promise<void> {
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
        ...[o.id, formatInstant(o.confirmedAt, o.currency, language), `${o.contact.name} <${o.contact.email}>`],
        ...[formatMoney(o.amount, o.currency, language), w.orderStates[o.status] ?? o.status],
      ],
      actions: () => [
        ...(o.status === "confirmed" ? [make("button", { type: "button", "data-refund": o.id, click: () => askRefund(o.id) }, w.refund)] : []),
        make("button", { type: "button", "data-resend": o.id, click: () => askResend(o.id) }, w.resend),
      ],
    })),
  );
}

function askRefund(id: string): void {
  ask({
    title: w.refund,
    words: w.refundAsk(id),
    fields: [reasonField, { name: "restock", label: w.restock, type: "checkbox" }],
    act: (v) => admin("POST", `/orders/${encodeURIComponent(id)}/refund`, { reason: v.reason, restock: v.restock !== undefined }),
  });
}
function askResend(id: string): void {
  ask({ title: w.resend, words: id, fields: [reasonField], act: (v) => admin("POST", `/orders/${encodeURIComponent(id)}/mail`, { reason: v.reason }) });
}

async function refreshLists(): Promise<void> {
  if (chosen === "") return;
  const of = chosen;
  const [page, log] = await Promise.all([
    ordersPage(null),
    admin<{ entries: Array<{ at: string; action: string; detail: Record<string, unknown> }> }>("GET", `/log?saleId=${encodeURIComponent(of)}&limit=20`),
  ]);
  if (of !== chosen) return;
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
  );
}

// ---- live ----

const POINTS_MAX = 900;
let soldBefore = "";

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
    const f = JSON.parse(data) as { sales?: Figures[]; rates?: Rates; point?: Point; unavailable?: string };
    if (f.unavailable !== undefined) {
      live("bad", `${w.storesAway}: ${f.unavailable}`);
      return;
    }
    live("ok", w.live);
    sales = f.sales ?? [];
    if (f.point) points = [...points, f.point].slice(-POINTS_MAX);
    renderRates(f.rates);
    const before = chosen;
    renderAll();
    // Orders are read again when there are other ones.
    const sold = JSON.stringify([chosen, saleNow()?.items.map((i) => i.sold), saleNow()?.payments?.refunding]);
    if (sold !== soldBefore || before !== chosen) {
      soldBefore = sold;
      void refreshLists().catch(() => {});
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
  for (const name of ["history", "figures", "books"]) events.addEventListener(name, (e) => heard(name, (e as MessageEvent<string>).data));
  events.addEventListener("error", () => {
    live("bad", w.lostConnection);
    if (events.readyState !== EventSource.CLOSED) return;
    // Refused, not lost: the session may be over, which asking tells.
    events.close();
    setTimeout(() => void admin("GET", "/sales").then(listen, listen), 2_000);
  });
}

function startCockpit(): void {
  unitsChart = chart("#units-chart", [
    { label: w.free, colour: COLOURS.free, fill: true },
    { label: w.held, colour: COLOURS.held, fill: true },
    { label: w.inPayment, colour: COLOURS.inPayment, fill: true },
    { label: w.sold, colour: COLOURS.sold, fill: true },
  ]);
  ratesChart = chart("#rates-chart", [
    { label: w.requests, colour: COLOURS.requests, fill: false },
    { label: w.grantedPerSecond, colour: COLOURS.granted, fill: false },
    { label: w.refusedPerSecond, colour: COLOURS.refused, fill: false },
    { label: w.shedPerSecond, colour: COLOURS.shed, fill: false },
  ]);
  startActions();
  listen();
}

startCockpit();
