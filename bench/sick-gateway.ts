/**
 * What a sick gateway costs the charges: each case over a stack of its own with default settings, as a ratio to the
 * healthy pace of the same run.
 */
import { signShopperToken } from "../src/http/auth.ts";
import { type SickGateway, startSickGateway } from "../test/sick-gateway.ts";
import { type Operator, operatorOf, privateStack, type Target } from "./target.ts";

const LIMIT = 4;
const CHARGE_MS = 300;
const LINE = 320;
const SETTLE_MS = 3_000;
const WINDOW_MS = 12_000;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

interface Bed {
  target: Target;
  op: Operator;
  sick: SickGateway;
}
export interface SickCase {
  name: string;
  perSecond: number;
  ratio: number;
  /** Look-ups a second, as a share of what the limit's permits can do. */
  lookUps: number;
  note: string;
}

/** Shoppers who reserve and press pay; answers their payments' references. */
async function pay({ target }: Bed, saleId: string, n: number, token: string, who: string): Promise<string[]> {
  const references: string[] = [];
  let next = 0;
  const one = async () => {
    while (next < n) {
      const authorization = `Bearer ${signShopperToken(target.secret, `${who}-${next++}`, 3_600_000)}`;
      const headers = { authorization, "content-type": "application/json" };
      const held = await fetch(`${target.url}/v1/sales/${saleId}/reservations`, {
        method: "POST",
        headers: { ...headers, "idempotency-key": "k" },
        body: JSON.stringify({ lines: [{ sku: "bag", quantity: 1 }] }),
      });
      const { id } = (await held.json()) as { id: string };
      const contact = { email: "bench@example.invalid", name: "Bench" };
      const paying = await fetch(`${target.url}/v1/reservations/${id}/confirm`, {
        method: "POST",
        headers,
        body: JSON.stringify({ payment: { gateway: "sandbox", token }, contact }),
      });
      const { payment } = (await paying.json()) as { payment?: { id: string } };
      if (payment) references.push(payment.id.slice(4));
    }
  };
  await Promise.all(Array.from({ length: 24 }, one));
  return references;
}

async function until(what: string, f: () => boolean | Promise<boolean>, msMax = 120_000): Promise<void> {
  for (const end = performance.now() + msMax; !(await f()); await pause(50))
    if (performance.now() > end) throw new Error(`waited too long for ${what}`);
}

/** `n` orders, and their refunds asked for. */
async function refunds(bed: Bed, saleId: string, n: number): Promise<void> {
  bed.sick.latencyMs.charge = 1;
  const references = await pay(bed, saleId, n, "tok_ok", "refunded");
  const sold = async () =>
    ((await bed.op.call<{ items: Array<{ sold: number }> }>("GET", `/sales/${saleId}`)).items[0]?.sold ?? 0) >= n;
  await until("the orders to be refunded", sold);
  bed.sick.latencyMs.charge = CHARGE_MS;
  for (let i = 0; i < references.length; i += 20)
    await Promise.all(
      references
        .slice(i, i + 20)
        .map((r) => bed.op.call("POST", `/orders/ord_${r}/refund`, { reason: "bench", restock: true })),
    );
}

const CASES: Array<[name: string, prepare: (bed: Bed, saleId: string) => Promise<unknown> | undefined]> = [
  ["healthy", () => undefined],
  [
    "4 refunds refused with 422",
    (bed, saleId) => {
      bed.sick.behave.refund = () => ({ status: 422, body: { error: "no" } });
      return refunds(bed, saleId, 4);
    },
  ],
  [
    "40 refunds of 3 s",
    (bed, saleId) => {
      bed.sick.latencyMs.refund = 3_000;
      return refunds(bed, saleId, 40);
    },
  ],
  [
    "1,000 refunds",
    (bed, saleId) => {
      bed.sick.latencyMs.refund = CHARGE_MS;
      return refunds(bed, saleId, 1_000);
    },
  ],
  [
    "40 payments whose look-ups answer 500",
    async (bed, saleId) => {
      // Every second one, so that no breaker takes the gateway for one that is away.
      const [ill, seen] = [new Set<string>(), new Set<string>()];
      bed.sick.behave.charge = ({ reference }) => {
        if (ill.size < 40 && seen.add(reference).size % 2 === 0) ill.add(reference);
        return ill.has(reference) ? { status: 500, body: "" } : undefined;
      };
      bed.sick.behave.lookUp = ({ reference }) =>
        ill.has(reference) ? { status: 500, body: "", delayMs: CHARGE_MS } : undefined;
      await pay(bed, saleId, 80, "tok_ok", "ill");
      await until("forty to be ill", () => ill.size >= 40);
    },
  ],
  [
    "30 shoppers at their bank's page",
    async (bed, saleId) => {
      bed.sick.latencyMs.lookUp = CHARGE_MS;
      await pay(bed, saleId, 30, "tok_3ds", "bank");
      await until("the approvals to be asked for", () => bed.sick.charges.size >= 30);
    },
  ],
  [
    "10 % of charges answered 502 at once",
    async (bed) => {
      bed.sick.behave.charge = ({ reference, n }) =>
        n === 1 && Number.parseInt(reference.slice(-3), 36) % 10 === 0 ? { status: 502, body: "<html>" } : undefined;
    },
  ],
  // How much the machine itself has changed its mind meanwhile.
  ["healthy, once more", () => undefined],
];

async function measure(name: string, prepare: (typeof CASES)[number][1]): Promise<Omit<SickCase, "ratio">> {
  const sick = await startSickGateway();
  const target = await privateStack(1, { SANDBOX_GATEWAY_URL: sick.url, GATEWAY_IN_FLIGHT_MAX: String(LIMIT) });
  try {
    const op = operatorOf(target);
    const bed: Bed = { target, op, sick };
    sick.latencyMs.charge = CHARGE_MS;
    const ofCase = await op.makeSale(5_000, { gateways: ["sandbox"] });
    const saleId = await op.makeSale(5_000, { gateways: ["sandbox"] });
    await prepare(bed, ofCase);
    const inLine = new Set(await pay(bed, saleId, LINE, "tok_ok", "line"));
    await pause(SETTLE_MS);
    const captured = () =>
      [...sick.charges.values()].filter((c) => inLine.has(c.reference) && c.status === "captured").length;
    const [before, looked, began] = [captured(), sick.count("lookUp"), performance.now()];
    await pause(WINDOW_MS);
    const s = (performance.now() - began) / 1000;
    const perSecond = (captured() - before) / s;
    const lookUps = ((sick.count("lookUp") - looked) / s) * (CHARGE_MS / 1000 / LIMIT);
    const note = `${captured()} of ${LINE} charged, most in flight ${sick.inFlightMax()}, refunds ${sick.count("refund")}`;
    return { name, perSecond, lookUps, note };
  } finally {
    await target.stop();
    await sick.close();
  }
}

/** `named`: healthy, and of the others those whose name has it. */
export async function sickGateway(say: (line: string) => void, named: string): Promise<SickCase[]> {
  const found: SickCase[] = [];
  for (const [name, prepare] of CASES) {
    if (!name.startsWith("healthy") && !name.includes(named)) continue;
    const m = await measure(name, prepare);
    const healthy = found[0]?.perSecond ?? m.perSecond;
    found.push({ ...m, ratio: m.perSecond / healthy });
    const f = found.at(-1) as SickCase;
    say(
      `  ${name.padEnd(40)} ${f.perSecond.toFixed(2).padStart(6)}/s   ${f.ratio.toFixed(2)} of healthy   look-ups ${(f.lookUps * 100).toFixed(0)} % of the limit   (${f.note})`,
    );
  }
  return found;
}
