/**
 * What the scripts of lua/ answer, as discriminated unions. The outcome words are those of the scripts' headers; a test
 * holds both together, and an outcome or a number that is not known throws: a reply is never taken on trust.
 */
import { type Hold, parseHold, type SaleClock } from "../domain/hold.ts";

export type Answer<R> = SaleClock & { results: R };

export type ReserveResult =
  | { outcome: "HELD"; deadlineMs: number }
  | { outcome: "REPLAYED"; hold: Hold }
  | { outcome: "MISMATCH" | "NOT_OPEN" | "CLOSED" | "PAUSED" | "BACKLOG" }
  | { outcome: "LIMIT"; units: number }
  | { outcome: "SHORT"; nextDueMs: number; lines: Array<{ sku: string; free: number; live: number }> };
export type PayResult =
  | { outcome: "PAYING" | "JOINED" | "CONFIRMED" | "DECLINED_BEFORE" | "RELEASED" | "EXPIRED"; hold: Hold }
  | { outcome: "PAUSED" | "LOST" };
export type ConfirmResult = { outcome: "CONFIRMED" | "OTHER_PAYMENT"; hold: Hold } | { outcome: "LOST" };
export type DeclineResult = { outcome: "HELD" | "RELEASED" | "OTHER_PAYMENT"; hold: Hold } | { outcome: "LOST" };
export type ReleaseResult =
  | { outcome: "RELEASED" | "EXPIRED" | "PAYING" | "CONFIRMED"; hold: Hold }
  | { outcome: "LOST" };
export type TopUpResult = { outcome: "APPLIED" | "BELOW"; free: number; live: number } | { outcome: "UNKNOWN_SKU" };
export type FenceResult = { outcome: "FENCED" | "BUSY" | "NEWER"; epoch: number | null; seq: number | null };
export type InstallResult = "INSTALLED" | "NOT_NEWER" | "OTHER_INSTANCE";
export type PermitResult =
  | { outcome: "TAKEN"; reference: string; leaseMs: number }
  | { outcome: "EMPTY" | "BUSY" }
  | { outcome: "SHUT"; opensInMs: number };

/** Units of an item in Redis: free ones, and those of live reservations. */
export interface ItemUnits {
  free: number;
  live: number;
}

interface SaleTimes {
  nextDueMs: number;
  opensAtMs: number;
  closesAtMs: number;
  reserving: boolean;
}
export interface StockView extends SaleTimes {
  journalLength: number;
  heldHolds: number;
  payingHolds: number;
  items: Map<string, ItemUnits>;
}
export interface RefusalLease extends SaleTimes {
  /** Every customer who ever held something in this sale. */
  customerCount: number;
  items: Map<string, ItemUnits>;
  customers: string[] | null;
}

/** `WORD|rest` -> both. */
export function split(text: string): [string, string] {
  const at = text.indexOf("|");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

/** A whole number of a reply. */
export function wholeOf(text: string | undefined, what: string): number {
  const n = text === undefined || text === "" ? Number.NaN : Number(text);
  if (!Number.isSafeInteger(n)) throw new Error(`a script answered "${text}" for ${what}`);
  return n;
}

/** One of the words that a script may answer. */
export function wordOf<T extends string>(text: string | undefined, words: readonly T[]): T {
  if (!words.includes(text as T)) throw new Error(`a script answered ${text}, not one of ${words.join(", ")}`);
  return text as T;
}

/** Outcomes with a hold and outcomes without one, each only in its own shape. */
const holdReply =
  <W extends string, B extends string = never>(withHold: readonly W[], bare: readonly B[]) =>
  (text: string): { outcome: W; hold: Hold } | { outcome: B } => {
    const [word, rest] = split(text);
    if (rest === "") return { outcome: wordOf(word, bare) };
    return { outcome: wordOf(word, withHold), hold: parseHold(rest) };
  };

export const parsePay: (text: string) => PayResult = holdReply(
  ["PAYING", "JOINED", "CONFIRMED", "DECLINED_BEFORE", "RELEASED", "EXPIRED"],
  ["PAUSED", "LOST"],
);
export const parseConfirm: (text: string) => ConfirmResult = holdReply(["CONFIRMED", "OTHER_PAYMENT"], ["LOST"]);
export const parseDecline: (text: string) => DeclineResult = holdReply(["HELD", "RELEASED", "OTHER_PAYMENT"], ["LOST"]);
export const parseRelease: (text: string) => ReleaseResult = holdReply(
  ["RELEASED", "EXPIRED", "PAYING", "CONFIRMED"],
  ["LOST"],
);

export function parseReserve(text: string): ReserveResult {
  const [outcome, rest] = split(text);
  switch (outcome) {
    case "HELD":
      return { outcome, deadlineMs: wholeOf(rest, "a deadline") };
    case "REPLAYED":
      return { outcome, hold: parseHold(rest) };
    case "LIMIT":
      return { outcome, units: wholeOf(rest, "a customer's units") };
    case "SHORT": {
      const [next, parts] = split(rest);
      const lines = parts.split(",").map((part) => {
        const [sku = "", free, live] = part.split(":");
        return { sku, free: wholeOf(free, "free"), live: wholeOf(live, "live") };
      });
      return { outcome, nextDueMs: wholeOf(next, "the next deadline"), lines };
    }
    default:
      return { outcome: wordOf(outcome, ["MISMATCH", "NOT_OPEN", "CLOSED", "PAUSED", "BACKLOG"]) };
  }
}

/** `free|live` */
export function parseUnits(text: string | undefined): ItemUnits {
  const [free, live] = split(text ?? "");
  return { free: wholeOf(free, "free"), live: wholeOf(live, "live") };
}

export function parseTopUp(text: string): TopUpResult {
  const [outcome, rest] = split(text);
  if (outcome === "UNKNOWN_SKU") return { outcome };
  return { outcome: wordOf(outcome, ["APPLIED", "BELOW"]), ...parseUnits(rest) };
}

export function parseFence(text: string): FenceResult {
  const [word, rest] = split(text);
  const [epoch, seq] = split(rest);
  const orNull = (n: string, what: string) => (n === "" ? null : wholeOf(n, what));
  return {
    outcome: wordOf(word, ["FENCED", "BUSY", "NEWER"]),
    epoch: orNull(epoch, "the epoch"),
    seq: orNull(seq, "the sequence number"),
  };
}

export const parseInstall = (text: string | undefined): InstallResult =>
  wordOf(text, ["INSTALLED", "NOT_NEWER", "OTHER_INSTANCE"]);

export function parsePermit([outcome, second, third]: string[]): PermitResult {
  switch (outcome) {
    case "TAKEN":
      return { outcome, reference: second ?? "", leaseMs: wholeOf(third, "a lease") };
    case "SHUT":
      return { outcome, opensInMs: wholeOf(second, "the opening") };
    default:
      return { outcome: wordOf(outcome, ["EMPTY", "BUSY"]) };
  }
}

const timesOf = ([nextDue, opens, closes, reserving]: string[]): SaleTimes => ({
  nextDueMs: wholeOf(nextDue, "the next deadline"),
  opensAtMs: wholeOf(opens, "the opening"),
  closesAtMs: wholeOf(closes, "the closing"),
  reserving: reserving === "1",
});
const itemsOf = (skus: string[], pairs: string[]) => new Map(skus.map((sku, i) => [sku, parseUnits(pairs[i])]));

export function parseStock(fields: string[], skus: string[]): StockView {
  const [, , , , journal, held, paying, ...pairs] = fields;
  return {
    ...timesOf(fields),
    journalLength: wholeOf(journal, "the journal's length"),
    heldHolds: wholeOf(held, "held holds"),
    payingHolds: wholeOf(paying, "paying holds"),
    items: itemsOf(skus, pairs),
  };
}

export function parseRefusalLease(fields: string[], skus: string[]): RefusalLease {
  const [, , , , customerCount, ...rest] = fields;
  return {
    ...timesOf(fields),
    customerCount: wholeOf(customerCount, "the count of customers"),
    items: itemsOf(skus, rest),
    customers: rest.length > skus.length ? rest.slice(skus.length) : null,
  };
}
