/** A reservation as Redis keeps it: one packed text a hold, on the clock of its sale. */
import { RESERVATION_LETTERS, type ReservationLetter, type ReservationState } from "./lifecycle.ts";

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

const LETTERS = new Map(
  (Object.keys(RESERVATION_LETTERS) as ReservationLetter[]).map((letter) => [RESERVATION_LETTERS[letter], letter]),
);
export const letterOf = (state: ReservationState): ReservationLetter => LETTERS.get(state) as ReservationLetter;

export function parseHold(packed: string): Hold {
  const m = /^([hpcrx])\|(\d+)\|([^|]*)\|([^|]*)\|(.*)$/s.exec(packed);
  if (!m) throw new Error("a hold in Redis cannot be read");
  const [, letter, deadline, reference = "", lines = "", customerId = ""] = m;
  const state = RESERVATION_LETTERS[letter as ReservationLetter];
  return { state, deadlineMs: Number(deadline), reference, lines, customerId };
}

export function packHold(h: Hold): string {
  return `${letterOf(h.state)}|${h.deadlineMs}|${h.reference}|${h.lines}|${h.customerId}`;
}

/** A deadline on the sale's clock as an instant of Redis' clock; while the clock stands it moves along. */
export function deadlineAt(deadlineMs: number, clock: Pick<SaleClock, "nowMs" | "shiftMs" | "pausedAtMs">): number {
  return deadlineMs + clock.shiftMs + (clock.pausedAtMs > 0 ? clock.nowMs - clock.pausedAtMs : 0);
}

/** A hold whose time is over is expired, even before it was swept. */
export function seenNow(hold: Hold, clock: SaleClock): Hold {
  const over = hold.state === "held" && clock.pausedAtMs === 0 && hold.deadlineMs <= clock.nowMs - clock.shiftMs;
  return over ? { ...hold, state: "expired" } : hold;
}
