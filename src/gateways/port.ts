import type { OrderLine } from "../domain/order.ts";

/** One attempt, as a gateway needs it. `reference` is also the gateway's idempotency key. */
export interface ChargeRequest {
  reference: string;
  reservationId: string;
  amount: number;
  currency: string;
  token: string | null;
  returnUrl: string | null;
  lines: OrderLine[];
}

/**
 * What a gateway said. Two questions stand apart. Did money move? Only `unknown` leaves that open. May the call still
 * be running there? Only when no answer came at all: an answer, whatever it says and however unreadable, has ended the
 * call, and its permit is given back.
 */
export type GatewayAnswer =
  | { outcome: "captured"; chargeId: string; amount: number; currency: string }
  | { outcome: "declined"; declineCode: string; chargeId: string | null }
  | { outcome: "cancelled" }
  | { outcome: "action_required"; actionUrl: string }
  | { outcome: "refunded" }
  /** It is working on it now. */
  | { outcome: "pending" }
  /** It has never heard of it (yet): this ends nothing (rule A). */
  | { outcome: "not_found" }
  /** Known not to have been done: refused for its limit, or never reached. The same reference may be sent again. */
  | { outcome: "not_done"; why: string }
  | { outcome: "unknown"; why: string; answered: boolean };

/** A record of a gateway's list. The status may be one that we do not know: it is shown, and taken for no other. */
export interface ListedCharge {
  id: string;
  reference: string;
  reservationId: string;
  status: string;
  amount: number;
  currency: string;
}

export interface Gateway {
  name: string;
  /** A token of the gateway's browser library is required. */
  needsToken: boolean;
  /** Calls leave the house, so they need permits. */
  needsPermits: boolean;
  charge(request: ChargeRequest): Promise<GatewayAnswer>;
  lookUp(reference: string): Promise<GatewayAnswer>;
  /** After `cancelled` a charge under this reference can never happen. */
  cancel(reference: string): Promise<GatewayAnswer>;
  refund(reference: string, amount: number): Promise<GatewayAnswer>;
  /**
   * A page of the gateway's own list, oldest first. It may be shorter than asked for: the list goes on while `next` is
   * not null.
   */
  list(after: string | null, limit: number): Promise<ListPage>;
}

export interface ListPage {
  charges: ListedCharge[];
  next: string | null;
  /** Records that could not be read at all. */
  odd: number;
}

/** A list that could not be read; `answered` as for a call: then it has ended. */
export class ListUnread extends Error {
  readonly answered: boolean;
  constructor(why: string, answered: boolean) {
    super(why);
    this.answered = answered;
  }
}
