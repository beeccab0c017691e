/** Every kind of request that exists, for the soak: how often, and what it answers. */
import { signShopperToken } from "../src/http/auth.ts";
import { type Asked, askMany, openAndLeave } from "./many-requests.ts";
import {
  ADMIN_TOKEN,
  CONTACT,
  inParallel,
  operator,
  type Running,
  SECRET,
  saleBodyOf,
  shopper,
  until,
} from "./support.ts";

/** Asked of memory, or one question to Redis. */
const CHEAP = 20_000;
/** One to three questions to Postgres, at a thousand a second on a small machine. */
const STORED = 8_000;
/** More of them, a page made of many parts, or a document of tens of kilobytes. */
const DEARER = 2_000;
/** Writes that stay in Redis and in Postgres for good, or answers of hundreds of kilobytes. */
const WORK = 800;
/** Reads everything that there is, or waits on purpose. */
const HEAVY = 60;

const CUSTOMERS = 40;

export interface Kind {
  name: string;
  /** In the whole soak. */
  times: number;
  answers: number[];
  ask(i: number): Asked;
}

export interface Stage {
  kinds: Kind[];
  /** What takes several requests in a row: `share` of the whole soak. */
  play(url: string, round: number, rounds: number): Promise<void>;
}

/** Sales, customers, a confirmed order, a declined payment and a released hold for the kinds to ask about. */
export async function setScene(helper: Running): Promise<Stage> {
  const op = operator(helper.url);
  const { ids, sales } = helper.service.ctx;
  const docs = await (await fetch(`${helper.url}/docs`)).text();
  const docsFile = /"(\/assets\/swagger-ui-bundle-[^"]+)"/.exec(docs)?.[1] ?? "/docs-name-no-bundle";
  const many = [{ sku: "bag", name: "Bag", unitPrice: 1_000, stock: 1_000_000 }];
  const sale = saleBodyOf({
    items: many,
    maxUnitsPerCustomer: 100_000,
    holdMs: 86_400_000,
    gateways: ["sandbox", "cod"],
  });
  const none = saleBodyOf({ items: [{ sku: "bag", name: "Bag", unitPrice: 1_000, stock: 0 }] });
  const later = saleBodyOf({ opensAt: new Date(Date.now() + 3_600_000).toISOString() });
  const limited = saleBodyOf({ maxUnitsPerCustomer: 1, holdMs: 86_400_000 });
  for (const s of [sale, none, later, limited]) await op.create(s);
  const saleNo = (await sales.get(sale.id))?.no as number;
  const idOf = (customerId: string, key: string) =>
    ids.reservationId(saleNo, customerId, ids.reservationKey(saleNo, customerId, key));

  const hana = shopper(helper.url, "hana");
  const held = (await hana.reserve(sale.id, "held")).body.id;
  await hana.release((await hana.reserve(sale.id, "released")).body.id);
  await hana.reserve(limited.id, "one");
  const bought = (await hana.reserve(sale.id, "bought")).body.id;
  const orderId = (await hana.confirm(bought, { gateway: "cod" })).body.orderId as string;
  const declined = (await hana.reserve(sale.id, "declined")).body.id;
  await hana.confirm(declined, { token: "tok_declined" });
  await until("the order", async () => (await hana.order(orderId)).status === 200);
  await op.topUp(sale.id, 1, "again");

  // One token each: how many are remembered is bounded, and no matter of a soak.
  const tokens = Array.from({ length: CUSTOMERS }, (_, i) => signShopperToken(SECRET, `c${i}`, 3_600_000));
  const json = { "content-type": "application/json" };
  const mine = { authorization: hana.authorization };
  const admin = { authorization: `Bearer ${ADMIN_TOKEN}` };
  const lines = JSON.stringify({ lines: [{ sku: "bag", quantity: 1 }] });
  const pay = (payment: Record<string, string>) => JSON.stringify({ payment, contact: CONTACT });
  const get =
    (path: string, headers: Record<string, string> = {}) =>
    (): Asked => ({ path, headers });
  const reserve =
    (saleId: string, headers: Record<string, string>, body = lines) =>
    (): Asked => ({
      method: "POST",
      path: `/v1/sales/${saleId}/reservations`,
      headers: { ...json, "idempotency-key": "k", ...headers },
      body,
    });
  const confirm = (id: string, payment: Record<string, string>, wait: string) => (): Asked => ({
    method: "POST",
    path: `/v1/reservations/${id}/confirm`,
    headers: { ...json, ...mine, prefer: `wait=${wait}` },
    body: pay(payment),
  });
  const operate =
    (method: string, path: string, body: unknown, headers: Record<string, string> = {}) =>
    (): Asked => ({
      method,
      path: `/v1/admin${path}`,
      headers: { ...json, ...admin, ...headers },
      body: JSON.stringify(body),
    });
  const customerOf = (i: number) => i % CUSTOMERS;

  const kind = (name: string, times: number, answers: number[], ask: (i: number) => Asked): Kind => ({
    name,
    times,
    answers,
    ask,
  });
  const shoppers = [
    kind("a sale", CHEAP, [200], get(`/v1/sales/${sale.id}`)),
    kind("a sale that nobody made", STORED, [404], (i) => ({ path: `/v1/sales/made-up-${i}` })),
    kind("a sale by a name that cannot be", CHEAP, [404], (i) => ({ path: `/v1/sales/%00${i}` })),
    kind("one's own reservations", CHEAP, [200], get(`/v1/sales/${limited.id}/reservations`, mine)),
    kind("a reservation", CHEAP, [200], get(`/v1/reservations/${held}`, mine)),
    kind("a reservation of somebody else", CHEAP, [404], (i) => ({
      path: `/v1/reservations/${held}x${i}`,
      headers: mine,
    })),
    kind("reserve, replayed", CHEAP, [200], reserve(sale.id, { ...mine, "idempotency-key": "held" })),
    kind("reserve, sold out", CHEAP, [409], (i) =>
      reserve(none.id, { authorization: `Bearer ${tokens[customerOf(i)]}`, "idempotency-key": `k${i}` })(),
    ),
    kind("reserve, too early", CHEAP, [403], (i) => reserve(later.id, { ...mine, "idempotency-key": `k${i}` })()),
    kind("reserve, beyond the limit", CHEAP, [409], (i) =>
      reserve(limited.id, { ...mine, "idempotency-key": `k${i}` })(),
    ),
    kind("reserve with a wrong token", CHEAP, [401], (i) => reserve(sale.id, { authorization: `Bearer wrong${i}` })()),
    kind("reserve with a body that is not JSON", CHEAP, [400], reserve(sale.id, mine, "{")),
    kind("reserve with a body of another shape", CHEAP, [422], reserve(sale.id, mine, "{}")),
    kind("reserve with a body that is too large", DEARER, [413], reserve(sale.id, mine, " ".repeat(17_000))),
    kind("release, replayed", CHEAP, [200], () => ({
      method: "DELETE",
      path: `/v1/reservations/${idOf("hana", "released")}`,
      headers: mine,
    })),
    kind("confirm, replayed, and ready to wait", CHEAP, [200], confirm(bought, { gateway: "cod" }, "5")),
    kind("confirm, declined before", DEARER, [402], confirm(declined, { token: "tok_declined" }, "5")),
    kind("an order", STORED, [200], get(`/v1/orders/${orderId}`, mine)),
    kind("an order that nobody has", DEARER, [404], get(`/v1/orders/ord_${"A".repeat(26)}`, mine)),
  ];
  const operations = [
    kind("no such route", CHEAP, [404], (i) => ({ path: `/no/such/route/${i}` })),
    kind("alive", CHEAP, [200], get("/healthz")),
    kind("ready", DEARER, [200], get("/readyz")),
    kind("metrics", DEARER, [200], get("/metrics")),
    kind("the document", DEARER, [200], get("/openapi.json")),
    kind("docs", DEARER, [200], get("/docs")),
    kind("a file of the docs", HEAVY, [200], get(docsFile)),
    kind("an asset that is not there", CHEAP, [404], (i) => ({ path: `/assets/no-${i}.js` })),
  ];
  const operators = [
    kind("an operator's wrong token", CHEAP, [401], (i) => ({
      path: "/v1/admin/sales",
      headers: { authorization: `Bearer ${i}` },
    })),
    kind("all sales with figures", HEAVY, [200], get("/v1/admin/sales", admin)),
    kind("a sale with figures", WORK, [200], get(`/v1/admin/sales/${sale.id}`, admin)),
    kind("the books", HEAVY, [200], get(`/v1/admin/sales/${limited.id}/audit`, admin)),
    kind(
      "the certificate",
      HEAVY,
      [200],
      get(`/v1/admin/sales/${limited.id}/audit`, { ...admin, accept: "text/html" }),
    ),
    kind("orders", DEARER, [200], get("/v1/admin/orders?limit=5", admin)),
    kind("orders as CSV", HEAVY, [200], get(`/v1/admin/orders?format=csv&saleId=${sale.id}`, admin)),
    kind("the trail", DEARER, [200], get("/v1/admin/log?limit=5", admin)),
    kind("a sale created again", WORK, [200], operate("POST", "/sales", sale)),
    kind("patch", HEAVY, [200], (i) => operate("PATCH", `/sales/${limited.id}`, { name: `Bags ${i % 10}` })()),
    kind(
      "a top-up, replayed",
      WORK,
      [200],
      operate(
        "POST",
        `/sales/${sale.id}/items/bag/stock`,
        { delta: 1, reason: "test" },
        { "idempotency-key": "again" },
      ),
    ),
    kind("a top-up", HEAVY, [200], (i) =>
      operate(
        "POST",
        `/sales/${sale.id}/items/bag/stock`,
        { delta: 1, reason: "test" },
        { "idempotency-key": `n${i}` },
      )(),
    ),
    kind("reconcile", HEAVY, [200], operate("POST", `/sales/${sale.id}/reconcile`, {})),
    kind("the mail again", HEAVY, [202], operate("POST", `/orders/${orderId}/mail`, { reason: "test" })),
    kind("the cockpit's door", DEARER, [200], get("/admin")),
    kind("signing in", HEAVY, [303], () => ({
      method: "POST",
      path: "/admin/sign-in",
      headers: {
        "content-type": "application/x-www-form-urlencoded",
        origin: "http://here",
        "sec-fetch-site": "same-origin",
      },
      body: `token=${ADMIN_TOKEN}`,
    })),
  ];

  async function play(url: string, round: number, rounds: number): Promise<void> {
    const times = (n: number, f: (i: number) => Promise<unknown>) =>
      inParallel(
        8,
        Array.from({ length: Math.ceil(n / rounds) }, (_, i) => () => f(i)),
      );
    await reserveAndRelease(url, round, Math.ceil(DEARER / rounds));
    await times(WORK / 4, (i) => buy(url, `round ${round} card ${i}`, { token: i % 4 ? "tok_ok" : "tok_declined" }));
    await times(WORK / 8, (i) => buy(url, `round ${round} cash ${i}`, { gateway: "cod" }, i % 4 === 0));
    await times(WORK / 2, () => openAndLeave(url, { path: `/v1/reservations/${held}/events`, headers: mine }));
    await times(WORK / 4, () => openAndLeave(url, { path: `/v1/reservations/${bought}/events`, headers: mine }));
    await times(WORK / 4, () => openAndLeave(url, { path: "/v1/admin/events", headers: admin }));
  }

  /** Every hold is given back, so that at the end there are no more than at the beginning. */
  async function reserveAndRelease(url: string, round: number, n: number): Promise<void> {
    const authorization = (i: number) => `Bearer ${tokens[customerOf(i)]}`;
    const key = (i: number) => `won-${round}-${i}`;
    const won = await askMany(url, n, (i) =>
      reserve(sale.id, { authorization: authorization(i), "idempotency-key": key(i) })(),
    );
    const back = await askMany(url, n, (i) => ({
      method: "DELETE",
      path: `/v1/reservations/${idOf(`c${customerOf(i)}`, key(i))}`,
      headers: { authorization: authorization(i) },
    }));
    if (won[201] !== n || back[200] !== n) throw new Error(`won ${JSON.stringify(won)}, back ${JSON.stringify(back)}`);
  }

  async function buy(url: string, key: string, payment: Record<string, string>, refund = false): Promise<void> {
    const id = (await hana.reserve(sale.id, key.replaceAll(" ", "-"))).body.id;
    const paid = await shopper(url, "hana").confirm(id, payment, { waitS: 20 });
    const expected = payment.token === "tok_declined" ? 402 : 200;
    if (paid.status !== expected) throw new Error(`${key}: ${paid.status} ${JSON.stringify(paid.body)}`);
    if (payment.token === "tok_declined") await shopper(url, "hana").release(id);
    if (!refund) return;
    await until(
      "the refund",
      async () => (await operator(url).refund(paid.body.orderId as string, true)).status === 202,
    );
  }

  return { kinds: [...shoppers, ...operations, ...operators], play };
}
