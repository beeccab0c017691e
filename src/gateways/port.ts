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
 * What a gateway said. Only `unknown` leaves it open whether money moved; only `unknown` may still be running there, so only
 * then is the permit left to lapse.
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
  | { outcome: "unknown"; why: string };

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
  /** Closes the door: after `cancelled` a charge under this reference can never happen. */
  cancel(reference: string): Promise<GatewayAnswer>;
  refund(reference: string, amount: number): Promise<GatewayAnswer>;
  /** The gateway's own list, oldest first. */
  list(after: string | null, limit: number): Promise<{ charges: ListedCharge[]; next: string | null }>;
}
