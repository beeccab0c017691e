/** Every Redis key. One hash tag per sale partition, so that all keys of a transition share a slot. */
import { PARTITION } from "../domain/ids.ts";

/** Hints that a reservation changed; the message is its keys, comma-separated. Never a source of truth. */
export const CHANGES_CHANNEL = "fb:changes";

export interface SaleKeys {
  sale: string;
  journal: string;
  /** The eight keys of every transition, in the order of lua/prelude.lua. */
  transitionKeys: string[];
  moves: string;
}

export function saleKeys(saleId: string): SaleKeys {
  const at = (name: string) => `fb:{${saleId}:${PARTITION}}:${name}`;
  return {
    sale: at("sale"),
    journal: at("journal"),
    moves: at("moves"),
    transitionKeys: ["sale", "free", "live", "holds", "due", "paying", "customers", "journal"].map(at),
  };
}

/**
 * Zset of what Postgres was seen to have: its beat, and the journal position of each sale. Apart from the sales, so
 * that no rebuild removes it.
 */
export const MARKS_KEY = "fb:{marks}:postgres";

export interface GateKeys {
  permits: string;
  line: string;
  urgent: string;
  gate: string;
}

export function gateKeys(gateway: string): GateKeys {
  const at = (name: string) => `fb:{gate-${gateway}}:${name}`;
  return { permits: at("permits"), line: at("line"), urgent: at("urgent"), gate: at("gate") };
}
