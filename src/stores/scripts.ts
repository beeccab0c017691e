/**
 * Loads lua/ and gives one typed function per script. An expected refusal is a value of a discriminated union; an exception
 * is a fault and means "unknown". The outcome words are those of the scripts' headers; a test holds both together.
 */
import { readdirSync, readFileSync } from "node:fs";
import { RESERVATION_LETTERS, type ReservationLetter, type ReservationState } from "../domain/lifecycle.ts";
import { gateKeys, saleKeys } from "./keys.ts";
import { type Redis, Unavailable } from "./redis.ts";

const LUA = new URL("../../lua/", import.meta.url);
/** Transitions of a sale get the prelude; the others stand alone. */
const ALONE = new Set(["fence", "install", "line_join", "line_take", "permit_take", "permit_give", "gate_view"]);

/** Text of a script as Redis gets it: the shebang line first, then the prelude, then the script. */
export function scriptText(name: string): string {
  const own = readFileSync(new URL(`${name}.lua`, LUA), "utf8");
  if (ALONE.has(name)) return own;
  const lineEnd = own.indexOf("\n");
  return `${own.slice(0, lineEnd)}\n${readFileSync(new URL("prelude.lua", LUA), "utf8")}${own.slice(lineEnd)}`;
}

export function scriptNames(): string[] {
  return readdirSync(LUA)
    .filter((f) => f.endsWith(".lua") && f !== "prelude.lua")
    .map((f) => f.slice(0, -4));
}

/** What a call to a sale's transitions must agree with: see lua/prelude.lua. */
export interface Stamp {
  saleId: string;
  epoch: number;
  /** Highest sequence number this process or Postgres has seen. */
  seqMin: number;
  /** Redis clock, ms; the script refuses a later arrival. 0 = no limit. */
  notAfterMs: number;
}

export interface Hold {
  state: ReservationState;
  /** On the sale's clock. */
  deadlineMs: number;
  /** The payment the hold is or was last bound to, "" for none. */
  reference: string;
  /** `sku:quantity,...` in order of sku. */
  lines: string;
  customerId: string;
}

/** The clock of a sale at the moment of an answer. */
export interface SaleClock {
  nowMs: number;
  seq: number;
  shiftMs: number;
  pausedAtMs: number;
}
export type Answer<R> = SaleClock & { results: R };

/** This Redis is of another epoch, behind what was seen, fenced, broken, or has no such sale. Nothing was done. */
export class StaleEpoch extends Error {
  readonly redisEpoch: string;
  constructor(redisEpoch: string, why = "stale epoch") {
    super(why);
    this.redisEpoch = redisEpoch;
  }
}

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

export interface StockView {
  nextDueMs: number;
  opensAtMs: number;
  closesAtMs: number;
  reserving: boolean;
  journalLength: number;
  heldHolds: number;
  payingHolds: number;
  items: Map<string, { free: number; live: number }>;
}

export interface RefusalLease {
  nextDueMs: number;
  opensAtMs: number;
  closesAtMs: number;
  reserving: boolean;
  /** Every customer who ever held something in this sale. */
  customerCount: number;
  items: Map<string, { free: number; live: number }>;
  customers: string[] | null;
}

export function parseHold(packed: string): Hold {
  const m = /^([hpcrx])\|(\d+)\|([^|]*)\|([^|]*)\|(.*)$/s.exec(packed);
  if (!m) throw new Error("a hold in Redis cannot be read");
  const [, letter, deadline, reference, lines, customerId] = m as unknown as [
    string,
    ReservationLetter,
    string,
    string,
    string,
    string,
  ];
  return { state: RESERVATION_LETTERS[letter], deadlineMs: Number(deadline), reference, lines, customerId };
}

export function packHold(h: Hold): string {
  const letter = (Object.keys(RESERVATION_LETTERS) as ReservationLetter[]).find(
    (l) => RESERVATION_LETTERS[l] === h.state,
  );
  return `${letter}|${h.deadlineMs}|${h.reference}|${h.lines}|${h.customerId}`;
}

/** `WORD|rest` -> both. */
function split(text: string): [string, string] {
  const at = text.indexOf("|");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

const withHold =
  <T extends { outcome: string }>(words: readonly string[]) =>
  (text: string): T => {
    const [outcome, rest] = split(text);
    if (!words.includes(outcome)) throw new Error(`a script answered ${outcome}`);
    return (rest === "" ? { outcome } : { outcome, hold: parseHold(rest) }) as unknown as T;
  };

function parseReserve(text: string): ReserveResult {
  const [outcome, rest] = split(text);
  switch (outcome) {
    case "HELD":
      return { outcome, deadlineMs: Number(rest) };
    case "REPLAYED":
      return { outcome, hold: parseHold(rest) };
    case "LIMIT":
      return { outcome, units: Number(rest) };
    case "SHORT": {
      const [next, parts] = split(rest);
      const lines = parts.split(",").map((part) => {
        const [sku = "", free, live] = part.split(":");
        return { sku, free: Number(free), live: Number(live) };
      });
      return { outcome, nextDueMs: Number(next), lines };
    }
    case "MISMATCH":
    case "NOT_OPEN":
    case "CLOSED":
    case "PAUSED":
    case "BACKLOG":
      return { outcome };
    default:
      throw new Error(`reserve answered ${outcome}`);
  }
}

const parsePay = withHold<PayResult>([
  "PAYING",
  "JOINED",
  "CONFIRMED",
  "DECLINED_BEFORE",
  "RELEASED",
  "EXPIRED",
  "PAUSED",
  "LOST",
]);
const parseConfirm = withHold<ConfirmResult>(["CONFIRMED", "OTHER_PAYMENT", "LOST"]);
const parseDecline = withHold<DeclineResult>(["HELD", "RELEASED", "OTHER_PAYMENT", "LOST"]);
const parseRelease = withHold<ReleaseResult>(["RELEASED", "EXPIRED", "PAYING", "CONFIRMED", "LOST"]);

function parseTopUp(text: string): TopUpResult {
  const [outcome, rest] = split(text);
  if (outcome === "UNKNOWN_SKU") return { outcome };
  if (outcome !== "APPLIED" && outcome !== "BELOW") throw new Error(`top_up answered ${outcome}`);
  const [free, live] = split(rest);
  return { outcome, free: Number(free), live: Number(live) };
}

export interface InstallImage {
  epoch: number;
  seq: number;
  runId: string;
  settings: Record<string, number>;
  free: Map<string, number>;
  holds: Array<{ key: string; hold: Hold }>;
  customers: Map<string, { units: number; keys: string[] }>;
  moves: Array<{ id: string; delta: number }>;
}

export type Scripts = ReturnType<typeof makeScripts>;

type Command = (...args: Array<string | number>) => Promise<unknown>;

export function makeScripts(redis: Redis) {
  for (const name of scriptNames()) redis.client.defineCommand(`fb_${name}`, { lua: scriptText(name) });

  async function run(name: string, keys: string[], args: Array<string | number>): Promise<string[]> {
    if (!redis.instance()) throw new Unavailable("Redis is away");
    try {
      const command = (redis.client as unknown as Record<string, Command>)[`fb_${name}`] as Command;
      return (await command.call(redis.client, keys.length, ...keys, ...args)) as string[];
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (message.includes("BROKEN ")) throw new StaleEpoch("", message);
      throw new Unavailable(`Redis did not answer ${name}: ${message}`, 1000, { cause: error });
    }
  }

  /** One transition of a sale; throws StaleEpoch, or Unavailable when it arrived too late or its outcome is not known. */
  async function transition<T>(
    name: string,
    s: Stamp,
    args: Array<string | number>,
    parse: (text: string) => T,
    moreKeys: string[] = [],
  ): Promise<Answer<T[]>> {
    const reply = await run(
      name,
      [...saleKeys(s.saleId).transitionKeys, ...moreKeys],
      [s.epoch, s.seqMin, s.notAfterMs, ...args],
    );
    if (reply[0] === "STALE_EPOCH") throw new StaleEpoch(reply[1] ?? "");
    if (reply[0] === "LATE") throw new Unavailable(`${name} reached Redis too late`);
    const [, now, seq, shift, paused] = reply;
    const results = new Array<T>(reply.length - 5);
    for (let i = 5; i < reply.length; i++) results[i - 5] = parse(reply[i] as string);
    return { nowMs: Number(now), seq: Number(seq), shiftMs: Number(shift), pausedAtMs: Number(paused), results };
  }

  return {
    reserve: (
      s: Stamp,
      o: { sweepMax: number; journalMax: number },
      requests: Array<{ key: string; customerId: string; lines: string }>,
    ) =>
      transition(
        "reserve",
        s,
        [o.sweepMax, o.journalMax, ...requests.flatMap((r) => [r.key, r.customerId, r.lines])],
        parseReserve,
      ),

    pay: (s: Stamp, requests: Array<{ key: string; customerId: string; reference: string; referenceBefore: string }>) =>
      transition(
        "pay",
        s,
        requests.flatMap((r) => [r.key, r.customerId, r.reference, r.referenceBefore]),
        parsePay,
      ),

    confirm: (s: Stamp, requests: Array<{ key: string; reference: string }>) =>
      transition(
        "confirm",
        s,
        requests.flatMap((r) => [r.key, r.reference]),
        parseConfirm,
      ),

    decline: (
      s: Stamp,
      requests: Array<{ key: string; reference: string; graceMs: number; to: "held" | "released" }>,
    ) =>
      transition(
        "decline",
        s,
        requests.flatMap((r) => [r.key, r.reference, r.graceMs, r.to === "held" ? "h" : "r"]),
        parseDecline,
      ),

    release: (s: Stamp, requests: Array<{ key: string; customerId: string }>) =>
      transition(
        "release",
        s,
        requests.flatMap((r) => [r.key, r.customerId]),
        parseRelease,
      ),

    expire: (s: Stamp, max: number) => transition("expire", s, [max], Number),

    topUp: (s: Stamp, r: { id: string; sku: string; delta: number; customerId: string; units: number }) =>
      transition("top_up", s, [r.id, r.sku, r.delta, r.customerId, r.units], parseTopUp, [saleKeys(s.saleId).moves]),

    configure: (s: Stamp, version: number, settings: Record<string, number>) =>
      transition("configure", s, [version, ...Object.entries(settings).flat()], (text) => text as "APPLIED" | "OLD"),

    read: (s: Stamp, keys: string[]) => transition("read", s, keys, (text) => (text === "" ? null : parseHold(text))),

    list: (s: Stamp, customerId: string) =>
      transition("list", s, [customerId], (text) => {
        const [key, packed] = split(text);
        return { key, hold: parseHold(packed) };
      }),

    /** `known`: how many customers the caller has a list of; `customers` is null when that is still all, or more than `customersMax`. */
    async refusalLease(
      s: Stamp,
      o: { leaseMs: number; known: number; customersMax: number; skus: string[] },
    ): Promise<Answer<RefusalLease>> {
      const a = await transition("refusal_lease", s, [o.leaseMs, o.known, o.customersMax, ...o.skus], (text) => text);
      const [nextDue, opens, closes, reserving, customerCount, ...rest] = a.results;
      const pair = (text: string) => ({ free: Number(split(text)[0]), live: Number(split(text)[1]) });
      const view = {
        nextDueMs: Number(nextDue),
        opensAtMs: Number(opens),
        closesAtMs: Number(closes),
        reserving: reserving === "1",
        customerCount: Number(customerCount),
        items: new Map(o.skus.map((sku, i) => [sku, pair(rest[i] ?? "")])),
        customers: rest.length > o.skus.length ? rest.slice(o.skus.length) : null,
      };
      return { ...a, results: view };
    },

    async stock(s: Stamp, skus: string[]): Promise<Answer<StockView>> {
      const a = await transition("stock", s, skus, (text) => text);
      const [nextDue, opens, closes, reserving, journal, held, paying, ...pairs] = a.results;
      const items = new Map(
        skus.map((sku, i) => [sku, { free: Number(split(pairs[i] ?? "")[0]), live: Number(split(pairs[i] ?? "")[1]) }]),
      );
      const view = {
        nextDueMs: Number(nextDue),
        opensAtMs: Number(opens),
        closesAtMs: Number(closes),
        reserving: reserving === "1",
        journalLength: Number(journal),
        heldHolds: Number(held),
        payingHolds: Number(paying),
        items,
      };
      return { ...a, results: view };
    },

    async fence(saleId: string, epoch: number, by: string, leaseMs: number): Promise<FenceResult> {
      const [reply = ""] = await run("fence", [saleKeys(saleId).sale], [epoch, by, leaseMs]);
      const [outcome, rest] = split(reply);
      const [e, q] = split(rest);
      return {
        outcome: outcome as FenceResult["outcome"],
        epoch: e === "" ? null : Number(e),
        seq: q === "" ? null : Number(q),
      };
    },

    async install(saleId: string, image: InstallImage): Promise<InstallResult> {
      const lines = (rows: Iterable<string>) => [...rows].join("\n");
      const keys = saleKeys(saleId);
      const [reply] = await run(
        "install",
        [...keys.transitionKeys, keys.moves],
        [
          image.epoch,
          image.seq,
          image.runId,
          lines(Object.entries(image.settings).map(([k, v]) => `${k} ${v}`)),
          lines([...image.free].map(([sku, units]) => `${sku} ${units}`)),
          lines(image.holds.map(({ key, hold }) => `${key}|${packHold(hold)}`)),
          lines([...image.customers].map(([id, c]) => `${id} ${c.units}|${c.keys.join(",")}`)),
          lines(image.moves.map((m) => `${m.id} ${m.delta}`)),
        ],
      );
      return reply as InstallResult;
    },

    /** Places in the line, from 1. */
    async lineJoin(gateway: string, references: string[]): Promise<number[]> {
      const k = gateKeys(gateway);
      return (await run("line_join", [k.line, k.gate], references)).slice(1).map(Number);
    },

    async lineTake(gateway: string, max: number): Promise<string[]> {
      return (await run("line_take", [gateKeys(gateway).line], [max])).slice(1);
    },

    async permitTake(
      gateway: string,
      a: { limit: number; leaseMs: number; token: string; kind: "charge" | "urgent"; fresh: boolean },
    ): Promise<PermitResult> {
      const instance = redis.instance();
      if (!instance) throw new Unavailable("Redis is away");
      const k = gateKeys(gateway);
      const [outcome, second, third] = await run(
        "permit_take",
        [k.permits, k.line, k.urgent, k.gate],
        [a.limit, a.leaseMs, a.token, a.kind, instance.runId, a.fresh ? 1 : 0],
      );
      switch (outcome) {
        case "TAKEN":
          return { outcome, reference: second ?? "", leaseMs: Number(third) };
        case "SHUT":
          return { outcome, opensInMs: Number(second) };
        case "EMPTY":
        case "BUSY":
          return { outcome };
        default:
          throw new Error(`permit_take answered ${outcome}`);
      }
    },

    async permitGive(gateway: string, token: string, callMs: number | null): Promise<void> {
      const k = gateKeys(gateway);
      await run("permit_give", [k.permits, k.urgent, k.gate], [token, callMs === null ? "" : Math.round(callMs)]);
    },

    async gateView(gateway: string, references: string[] = []) {
      const k = gateKeys(gateway);
      const [out, line, callMs, opensInMs, ...places] = (
        await run("gate_view", [k.permits, k.line, k.gate], references)
      )
        .slice(1)
        .map(Number) as [number, number, number, number, ...number[]];
      return { inFlight: out, line, callMs, opensInMs, places };
    },
  };
}
