/** One typed function per script of lua/. The scripts' headers are the contracts; replies.ts reads what they answer. */
import { ArrivedLate, StaleEpoch } from "../domain/errors.ts";
import { type Hold, packHold, parseHold } from "../domain/hold.ts";
import { gateScripts } from "./gate-scripts.ts";
import { saleKeys } from "./keys.ts";
import { loadScripts, type RunScript } from "./lua.ts";
import type { Redis } from "./redis.ts";
import * as replies from "./replies.ts";

/** What a call to a sale's transitions must agree with: see lua/prelude.lua. */
export interface Stamp {
  saleId: string;
  epoch: number;
  /** Highest sequence number this process or Postgres has seen. */
  seqMin: number;
  /** Redis clock, ms; the script refuses a later arrival. 0 = no limit. */
  notAfterMs: number;
}

/** A sale as Postgres knows it, to be installed in Redis. */
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

export function makeScripts(redis: Redis) {
  const run = loadScripts(redis);
  const transition = transitionsBy(run);
  return { ...saleScripts(transition), ...viewScripts(transition), ...rebuildScripts(run), ...gateScripts(redis, run) };
}

type Transition = <T>(
  name: string,
  s: Stamp,
  args: Array<string | number>,
  parse: (text: string) => T,
  moreKeys?: string[],
) => Promise<replies.Answer<T[]>>;

/**
 * One transition of a sale; throws StaleEpoch or ArrivedLate when nothing was done, Unavailable when that is not known.
 */
function transitionsBy(run: RunScript): Transition {
  return async function transition(name, s, args, parse, moreKeys = []) {
    const keys = saleKeys(s.saleId).transitionKeys;
    const reply = await run(name, [...keys, ...moreKeys], [s.epoch, s.seqMin, s.notAfterMs, ...args]);
    if (reply[0] === "STALE_EPOCH") throw new StaleEpoch(reply[1] ?? "");
    if (reply[0] === "LATE") throw new ArrivedLate(name, replies.wholeOf(reply[1], "Redis' clock"));
    const [word, now, seq, shift, paused] = reply;
    replies.wordOf(word, ["OK"]);
    const results = new Array<ReturnType<typeof parse>>(reply.length - 5);
    for (let i = 5; i < reply.length; i++) results[i - 5] = parse(reply[i] as string);
    return {
      nowMs: replies.wholeOf(now, "Redis' clock"),
      seq: replies.wholeOf(seq, "the sequence number"),
      shiftMs: replies.wholeOf(shift, "the sale's shift"),
      pausedAtMs: replies.wholeOf(paused, "the sale's pause"),
      results,
    };
  };
}

/** Each takes many requests at once and answers one result per request, in their order. */
function saleScripts(transition: Transition) {
  return {
    reserve(
      s: Stamp,
      o: { sweepMax: number; journalMax: number },
      requests: Array<{ key: string; customerId: string; lines: string }>,
    ) {
      const args = requests.flatMap((r) => [r.key, r.customerId, r.lines]);
      return transition("reserve", s, [o.sweepMax, o.journalMax, ...args], replies.parseReserve);
    },
    pay(s: Stamp, requests: Array<{ key: string; customerId: string; reference: string; referenceBefore: string }>) {
      const args = requests.flatMap((r) => [r.key, r.customerId, r.reference, r.referenceBefore]);
      return transition("pay", s, args, replies.parsePay);
    },
    confirm(s: Stamp, requests: Array<{ key: string; reference: string }>) {
      const args = requests.flatMap((r) => [r.key, r.reference]);
      return transition("confirm", s, args, replies.parseConfirm);
    },
    decline(s: Stamp, requests: Array<{ key: string; reference: string; graceMs: number; to: "held" | "released" }>) {
      const args = requests.flatMap((r) => [r.key, r.reference, r.graceMs, r.to === "held" ? "h" : "r"]);
      return transition("decline", s, args, replies.parseDecline);
    },
    release(s: Stamp, requests: Array<{ key: string; customerId: string }>) {
      const args = requests.flatMap((r) => [r.key, r.customerId]);
      return transition("release", s, args, replies.parseRelease);
    },
    expire(s: Stamp, max: number) {
      return transition("expire", s, [max], (text) => replies.wholeOf(text, "how many expired"));
    },
    topUp(s: Stamp, r: { id: string; sku: string; delta: number; customerId: string; units: number }) {
      const args = [r.id, r.sku, r.delta, r.customerId, r.units];
      return transition("top_up", s, args, replies.parseTopUp, [saleKeys(s.saleId).moves]);
    },
    configure(s: Stamp, version: number, settings: Record<string, number>) {
      const args = [version, ...Object.entries(settings).flat()];
      return transition("configure", s, args, (text) => replies.wordOf(text, ["APPLIED", "OLD"]));
    },
  };
}

/** What changes nothing. */
function viewScripts(transition: Transition) {
  return {
    read(s: Stamp, keys: string[]) {
      return transition("read", s, keys, (text) => (text === "" ? null : parseHold(text)));
    },
    /** The holds of a customer, oldest first. */
    list(s: Stamp, customerId: string) {
      return transition("list", s, [customerId], (text) => {
        const [key, packed] = replies.split(text);
        return { key, hold: parseHold(packed) };
      });
    },
    /**
     * `known`: how many customers the caller has a list of; `customers` is null when that is still all, or more than
     * `customersMax`.
     */
    async refusalLease(
      s: Stamp,
      o: { leaseMs: number; known: number; customersMax: number; skus: string[] },
    ): Promise<replies.Answer<replies.RefusalLease>> {
      const args = [o.leaseMs, o.known, o.customersMax, ...o.skus];
      const a = await transition("refusal_lease", s, args, (text) => text);
      return { ...a, results: replies.parseRefusalLease(a.results, o.skus) };
    },
    async stock(s: Stamp, skus: string[]): Promise<replies.Answer<replies.StockView>> {
      const a = await transition("stock", s, skus, (text) => text);
      return { ...a, results: replies.parseStock(a.results, skus) };
    },
  };
}

function rebuildScripts(run: RunScript) {
  return {
    async fence(saleId: string, epoch: number, by: string, leaseMs: number): Promise<replies.FenceResult> {
      const [reply = ""] = await run("fence", [saleKeys(saleId).sale], [epoch, by, leaseMs]);
      return replies.parseFence(reply);
    },
    async install(saleId: string, image: InstallImage): Promise<replies.InstallResult> {
      const keys = saleKeys(saleId);
      const [reply] = await run("install", [...keys.transitionKeys, keys.moves], installArguments(image));
      return replies.parseInstall(reply);
    },
  };
}

/** The image as lua/install.lua takes it: texts of many lines, since a list of arguments may not be that long. */
function installArguments(image: InstallImage): Array<string | number> {
  const lines = (rows: Iterable<string>) => [...rows].join("\n");
  return [
    image.epoch,
    image.seq,
    image.runId,
    lines(Object.entries(image.settings).map(([k, v]) => `${k} ${v}`)),
    lines([...image.free].map(([sku, units]) => `${sku} ${units}`)),
    lines(image.holds.map(({ key, hold }) => `${key}|${packHold(hold)}`)),
    lines([...image.customers].map(([id, c]) => `${id} ${c.units}|${c.keys.join(",")}`)),
    lines(image.moves.map((m) => `${m.id} ${m.delta}`)),
  ];
}
