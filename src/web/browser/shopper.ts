/** The shopper's identity and the messages they see. In a real shop its own login would give the token. */
import { FukubukuroError, makeClient } from "../../client/index.ts";
import { formatMoney } from "../../domain/money.ts";
import { SHOP_WORDS } from "../words.ts";
import { find, keep, kept, language, make, say } from "./dom.ts";

export const w = SHOP_WORDS[language];

const SHOPPER = "fukubukuro.shopper";
let making: Promise<string> | null = null;
async function makeShopper(): Promise<string> {
  const response = await fetch("/demo/shopper", { method: "POST" });
  if (!response.ok) throw new Error(`no shopper: ${response.status}`);
  const made = (await response.json()) as { token: string; untilMs: number };
  keep(localStorage, SHOPPER, made);
  return made.token;
}
/** One shopper, however many calls ask at once: a second one would not find the first one's bag. */
async function token(): Promise<string> {
  const known = kept<{ token: string; untilMs: number }>(localStorage, SHOPPER);
  if (known && known.untilMs > Date.now()) return known.token;
  making ??= makeShopper().finally(() => {
    making = null;
  });
  return making;
}

export const client = makeClient({ token, language });

export function tell(words: string): void {
  const problem = find("#problem");
  problem.hidden = words === "";
  say(problem, words);
}
/** A shopper whom the shop does not know any more (its secret was changed): the next call makes a new one. */
export const forgetShopper = () => keep(localStorage, SHOPPER, null);

export const wordsOf = (error: unknown): string =>
  error instanceof FukubukuroError ? (w.problems[error.code] ?? w.otherProblem) : w.otherProblem;

/** Rows of a table of prices: the lines, the shipping fee when there is one, the total. */
export function priceRows(
  priced: { lines: Line[]; amount: number; currency: string },
  nameOf: (line: Line) => string,
): HTMLTableRowElement[] {
  const money = (amount: number) => formatMoney(amount, priced.currency, language);
  const row = (label: string, value: string) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, value));
  const goods = priced.lines.reduce((sum, l) => sum + l.quantity * l.unitPrice, 0);
  return [
    ...priced.lines.map((l) => row(`${nameOf(l)} × ${l.quantity}`, money(l.quantity * l.unitPrice))),
    ...(priced.amount > goods ? [row(w.shippingFee, money(priced.amount - goods))] : []),
    row(w.total, money(priced.amount)),
  ];
}
type Line = { sku: string; quantity: number; unitPrice: number; name?: string };
