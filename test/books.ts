/**
 * The auditor of the crash tests and campaigns. It shares no code with the service: its own SQL, its own reading of
 * Redis, of the gateway's list and of the mails that arrived, and what clients were told.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import postgres from "postgres";

export interface Places {
  databaseUrl: string;
  redisUrl: string;
  gatewayUrl: string;
  mailsFolder: string;
}
/** What clients were told and may rely on. */
export interface Told {
  /** Order ids of every answer "confirmed". */
  confirmed: Set<string>;
  /** Units put on sale, opening stock and top-ups that were answered or repeated until they were. */
  granted: number;
}
interface Charge {
  id: string;
  reference: string;
  reservationId: string;
  status: string;
  amount: number;
  currency: string;
}

async function allCharges(gatewayUrl: string): Promise<Charge[]> {
  const all: Charge[] = [];
  for (let after = ""; ; ) {
    const page = (await (await fetch(`${gatewayUrl}/charges?limit=500${after && `&after=${after}`}`)).json()) as {
      charges: Charge[];
      next: string | null;
    };
    all.push(...page.charges);
    if (!page.next || page.charges.length === 0) return all;
    after = page.next;
  }
}

/** Message-IDs of every mail that arrived, repeats included. */
async function allMails(folder: string): Promise<string[]> {
  const files = await readdir(folder).catch(() => []);
  const texts = await Promise.all(files.map((f) => readFile(join(folder, f), "utf8")));
  return texts.map((t) => /^message-id:\s*<([^>]+)>/im.exec(t)?.[1] ?? "none");
}

/**
 * Everything that is wrong, as sentences; none when the books of the sale balance and nothing is under way any more.
 */
export async function faultsOf(p: Places, saleId: string, told: Told): Promise<string[]> {
  const sql = postgres(p.databaseUrl, { max: 1, onnotice: () => {} });
  const redis = new Redis(p.redisUrl, { maxRetriesPerRequest: 1, lazyConnect: true });
  redis.on("error", () => {});
  const faults: string[] = [];
  const wrong = (is: boolean, what: string) => void (is && faults.push(what));
  try {
    await redis.connect();
    const items = await sql<
      { sku: string; granted: number; claimed: number }[]
    >`select sku, granted, claimed from items where sale_id = ${saleId}`;
    const payments = await sql<
      {
        reference: string;
        state: string;
        claimed: boolean;
        gateway: string;
        reservation_id: string;
        lines: Array<{ sku: string; quantity: number }>;
      }[]
    >`
      select reference, state, claimed, gateway, reservation_id, lines from payments where sale_id = ${saleId}`;
    const orders = await sql<
      {
        id: string;
        reference: string;
        reservation_id: string;
        status: string;
        amount: string;
        currency: string;
        gateway: string;
        restock: boolean | null;
      }[]
    >`
      select id, reference, reservation_id, status, amount, currency, gateway, restock from orders
      where sale_id = ${saleId}`;
    const lines = await sql<{ order_id: string; sku: string; quantity: number }[]>`
      select order_id, sku, quantity from order_lines l join orders o on o.id = l.order_id where o.sale_id = ${saleId}`;
    const outbox = await sql<
      { order_id: string; state: string }[]
    >`select order_id, state from outbox where sale_id = ${saleId}`;
    const moves = await sql<
      { id: string }[]
    >`select id from stock_moves where sale_id = ${saleId} and state in ('pending', 'granted')`;
    const letters = await sql<{ entry_id: string }[]>`select entry_id from dead_letters where sale_id = ${saleId}`;

    // Nothing under way.
    for (const x of payments)
      wrong(
        ["queued", "sending", "action_required", "unknown", "refunding"].includes(x.state),
        `payment ${x.reference} is still ${x.state}`,
      );
    for (const x of outbox) wrong(x.state !== "sent", `the mail of ${x.order_id} is ${x.state}`);
    for (const x of moves) wrong(true, `stock move ${x.id} is not finished`);
    for (const x of letters) wrong(true, `journal entry ${x.entry_id} was set aside`);
    const key = (name: string) => `fb:{${saleId}:0}:${name}`;
    const [free, live, holds, paying, journal] = await Promise.all([
      redis.hgetall(key("free")),
      redis.hgetall(key("live")),
      redis.hgetall(key("holds")),
      redis.zrange(key("paying"), "0", "-1"),
      redis.xlen(key("journal")),
    ]);
    wrong(journal > 0, `${journal} journal entries are not persisted`);
    wrong(paying.length > 0, `${paying.length} holds are still paying`);
    const letterOf = new Map(Object.entries(holds).map(([k, packed]) => [k, packed.split("|")[0]]));
    for (const [k, letter] of letterOf) wrong(letter === "h" || letter === "p", `hold ${k} is still ${letter}`);

    // The mirror, from which a lost Redis is rebuilt, tells the same of every hold.
    const mirror = await sql<
      { key: string; state: string }[]
    >`select key, state from reservations where sale_id = ${saleId}`;
    const mirrored = new Map(mirror.map((m) => [m.key, m.state]));
    for (const [k, letter] of letterOf)
      wrong(mirrored.get(k) !== letter, `hold ${k} is ${letter}, mirrored as ${mirrored.get(k) ?? "nothing"}`);

    // P1 and P5: units.
    const claimedBy = new Map<string, number>();
    for (const x of payments)
      if (x.claimed) for (const l of x.lines) claimedBy.set(l.sku, (claimedBy.get(l.sku) ?? 0) + l.quantity);
    const soldBy = new Map<string, number>();
    const orderOf = new Map(orders.map((o) => [o.reference, o]));
    for (const l of lines) {
      const o = orders.find((x) => x.id === l.order_id);
      if (o && !(o.status === "refunded" && o.restock)) soldBy.set(l.sku, (soldBy.get(l.sku) ?? 0) + l.quantity);
    }
    for (const i of items) {
      const sold = soldBy.get(i.sku) ?? 0;
      wrong(sold > i.granted, `${i.sku}: ${sold} sold of ${i.granted}`);
      wrong(i.claimed !== sold, `${i.sku}: ${i.claimed} claimed, ${sold} sold`);
      wrong(
        i.claimed !== (claimedBy.get(i.sku) ?? 0),
        `${i.sku}: ${i.claimed} claimed, by payments ${claimedBy.get(i.sku) ?? 0}`,
      );
      wrong(
        Number(free[i.sku]) + Number(live[i.sku]) + i.claimed !== i.granted,
        `${i.sku}: free ${free[i.sku]} + live ${live[i.sku]} + claimed ${i.claimed} is not ${i.granted}`,
      );
    }
    wrong(
      items.reduce((n, i) => n + i.granted, 0) !== told.granted,
      `granted ${items.map((i) => i.granted)}, told ${told.granted}`,
    );

    // P2 and P4: money, both ways, from the gateway's own list.
    const references = new Set(payments.map((x) => x.reference));
    const reservations = new Set(payments.map((x) => x.reservation_id));
    const charges = (await allCharges(p.gatewayUrl)).filter(
      (c) => references.has(c.reference) || reservations.has(c.reservationId),
    );
    const captured = charges.filter((c) => c.status === "captured");
    for (const c of captured) {
      const o = orderOf.get(c.reference);
      wrong(o?.status !== "confirmed", `charge ${c.reference} is captured, its order is ${o?.status ?? "missing"}`);
      wrong(
        o !== undefined && (Number(o.amount) !== c.amount || o.currency !== c.currency),
        `charge ${c.reference} is of another amount than its order`,
      );
    }
    const perReservation = new Map<string, number>();
    for (const c of captured) perReservation.set(c.reservationId, (perReservation.get(c.reservationId) ?? 0) + 1);
    for (const [id, n] of perReservation) wrong(n > 1, `reservation ${id} was charged ${n} times`);
    for (const o of orders) {
      const c = charges.find((x) => x.reference === o.reference);
      if (o.gateway !== "cod")
        wrong(
          c?.status !== (o.status === "refunded" ? "refunded" : "captured"),
          `order ${o.id} is ${o.status}, its charge ${c?.status ?? "missing"}`,
        );
    }

    // P3: mails.
    const arrived = await allMails(p.mailsFolder);
    const mailed = new Set(arrived.map((m) => m.split(".confirmation@")[0] ?? ""));
    const known = await sql<{ id: string }[]>`select id from orders`;
    const everyOrder = new Set(known.map((o) => o.id));
    for (const id of mailed) wrong(!everyOrder.has(id), `a mail for ${id}, which is no order`);
    for (const o of orders) wrong(!mailed.has(o.id), `no mail for ${o.id}`);

    // P8: what was told.
    const ids = new Set(orders.map((o) => o.id));
    for (const id of told.confirmed) wrong(!ids.has(id), `${id} was told to be confirmed and is no order`);
    return faults;
  } finally {
    redis.disconnect();
    await sql.end({ timeout: 1 });
  }
}
