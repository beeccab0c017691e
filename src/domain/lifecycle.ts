/**
 * The file to read first: what a reservation, a payment, an order and a stock move can be, and how they may change.
 * Redis keeps a reservation's state as one letter; Postgres and the API use the words.
 */

export const RESERVATION_LETTERS = { h: "held", p: "paying", c: "confirmed", r: "released", x: "expired" } as const;
export type ReservationLetter = keyof typeof RESERVATION_LETTERS;
export type ReservationState = (typeof RESERVATION_LETTERS)[ReservationLetter];

export const RESERVATION_TRANSITIONS: Record<ReservationState, readonly ReservationState[]> = {
  held: ["paying", "released", "expired"],
  paying: ["confirmed", "held", "released"],
  confirmed: [],
  released: [],
  expired: [],
};

export const PAYMENT_STATES = [
  "queued",
  "sending",
  "action_required",
  "unknown",
  "captured",
  "declined",
  "cancelled",
  "refunding",
  "refunded",
] as const;
export type PaymentState = (typeof PAYMENT_STATES)[number];

/**
 * How a payment goes while nothing surprising happens. `queued -> captured` is cash on delivery: there is no gateway,
 * and the claim is the whole payment. `queued -> cancelled` is a payment that was never sent, because it waited too
 * long or had no unit to claim. `unknown` ends only by what the gateway says (rule A).
 */
export const PAYMENT_TRANSITIONS: Record<PaymentState, readonly PaymentState[]> = {
  queued: ["sending", "captured", "cancelled"],
  sending: ["captured", "declined", "action_required", "unknown", "cancelled"],
  action_required: ["captured", "declined", "cancelled", "unknown"],
  unknown: ["captured", "declined", "action_required", "cancelled"],
  captured: ["refunding"],
  declined: [],
  cancelled: [],
  refunding: ["refunded"],
  refunded: [],
};

/**
 * Late money: the gateway turns out to have captured a payment that was recorded as ended unpaid. Only recovery takes
 * these steps (rule N). To `captured` while the hold still lives, it can be pinned again and its units can be claimed
 * again; to `refunding` (with the row's `late` set) in every other case.
 */
export const LATE_STEPS = {
  declined: ["captured", "refunding"],
  cancelled: ["captured", "refunding"],
} as const satisfies Partial<Record<PaymentState, readonly PaymentState[]>>;
export type LateOutcome = (typeof LATE_STEPS)[keyof typeof LATE_STEPS][number];

/** Known not to have taken money: a further payment for the reservation may begin (rule H). */
export const PAYMENT_ENDED_UNPAID = ["declined", "cancelled"] as const satisfies readonly PaymentState[];
/** The gateway has been asked, or may have been, and has not said how it ended. Units stay claimed. */
export const PAYMENT_OPEN = ["sending", "action_required", "unknown"] as const satisfies readonly PaymentState[];

export const ORDER_STATES = ["confirmed", "refunding", "refunded"] as const;
export type OrderState = (typeof ORDER_STATES)[number];

export const STOCK_MOVE_STATES = ["pending", "granted", "done", "refused"] as const;
export type StockMoveState = (typeof STOCK_MOVE_STATES)[number];

/** Throws, also in production, when a step is not in the table: a broken lifecycle must never be written down. */
export function assertPaymentStep(from: PaymentState, to: PaymentState): void {
  if (!PAYMENT_TRANSITIONS[from].includes(to)) throw new Error(`a payment cannot go from ${from} to ${to}`);
}

/** States from which `to` may be reached: the guard of a conditional update. */
export function paymentStatesBefore(to: PaymentState): PaymentState[] {
  return PAYMENT_STATES.filter((from) => PAYMENT_TRANSITIONS[from].includes(to));
}

/** States from which late money may go to `to`: the guard of the update that takes the step. */
export function lateStatesBefore(to: LateOutcome): PaymentState[] {
  return PAYMENT_ENDED_UNPAID.filter((from) => LATE_STEPS[from].includes(to));
}
