import { hash, timingSafeEqual } from "node:crypto";
import { customAlphabet } from "nanoid";

/** Partition of a sale; one until a sale is split. Part of every reservation id. */
export const PARTITION = 0;

const HASH_LENGTH = 22; // 128 bits, base64url
const MAC_LENGTH = 11; // 64 bits, base64url
const SHAPE = /^rsv_([0-9a-z]{1,8})\.(\d{1,4})\.([A-Za-z0-9_-]{22})([A-Za-z0-9_-]{11})$/;

export interface ReservationId {
  saleNo: number;
  partition: number;
  /** The part that Redis keys a hold by. */
  key: string;
}

/**
 * Reservation ids are derived, never stored: the same sale, customer and idempotency key make the same id anywhere, and
 * the MAC lets an id that is invented or someone else's be refused before any store is asked.
 */
export interface Ids {
  /** The key under which Redis holds the reservation of this request. */
  reservationKey(saleNo: number, customerId: string, idempotencyKey: string): string;
  /** The public id. */
  reservationId(saleNo: number, customerId: string, key: string): string;
  /** The id's parts, or null when it is not one that this customer was given. */
  parse(id: string, customerId: string): ReservationId | null;
}

export function makeIds(secret: string): Ids {
  const prefix = hash("sha256", `reservation key ${secret}`);
  const macPrefix = hash("sha256", `reservation mac ${secret}`);
  // One keyed hash instead of an HMAC, since this runs for every request. Length extension is no danger: only a quarter
  // of the digest is given out, so nobody knows the state from which a longer message could be continued.
  const mac = (saleNo: number, customerId: string, key: string) =>
    hash("sha256", `${macPrefix}${saleNo}.${PARTITION}.${key}.${customerId}`, "base64url").slice(0, MAC_LENGTH);
  return {
    // The idempotency key is visible ASCII and the customer id has no white space, so a line break keeps them apart.
    reservationKey: (saleNo, customerId, idempotencyKey) =>
      hash("sha256", `${prefix}\n${saleNo}\n${customerId}\n${idempotencyKey}`, "base64url").slice(0, HASH_LENGTH),
    reservationId: (saleNo, customerId, key) =>
      `rsv_${saleNo.toString(36)}.${PARTITION}.${key}${mac(saleNo, customerId, key)}`,
    parse(id, customerId) {
      const [, no = "", partition = "", key = "", given = ""] = SHAPE.exec(id) ?? [];
      if (!no || Number(partition) !== PARTITION) return null;
      const saleNo = Number.parseInt(no, 36);
      const wanted = mac(saleNo, customerId, key);
      return timingSafeEqual(Buffer.from(wanted), Buffer.from(given)) ? { saleNo, partition: PARTITION, key } : null;
    },
  };
}

/** The sale's number inside any reservation id, or null; gateways hand ids back that may not be ours. */
export function saleNoOfReservation(id: string): number | null {
  const no = SHAPE.exec(id)?.[1];
  return no === undefined ? null : Number.parseInt(no, 36);
}

const random16 = customAlphabet("0123456789ABCDEFGHJKMNPQRSTVWXYZ", 16);

/**
 * A payment's reference, also its idempotency key at the gateway: 26 characters of [0-9A-Z], which fit every gateway's
 * tightest field (docs/measurements.md#gateways). Ten are time, which keeps the rows of one minute together; sixteen
 * are random.
 */
export function makeReference(nowMs: number): string {
  return nowMs.toString(36).toUpperCase().padStart(10, "0") + random16();
}

export const paymentIdOf = (reference: string) => `pay_${reference}`;
export const orderIdOf = (reference: string) => `ord_${reference}`;
export const referenceOfOrder = (orderId: string) => (/^ord_[0-9A-Z]{26}$/.test(orderId) ? orderId.slice(4) : null);
export const referenceOfPayment = (paymentId: string) => paymentId.slice(4);
