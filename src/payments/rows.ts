/**
 * The payment rows: every way they change, each a guarded statement. A statement that changes no row means that someone
 * else decided; callers read again and act on what is stored (rule B).
 */

import { and, eq, getTableColumns, inArray, sql } from "drizzle-orm";
import { Unavailable } from "../domain/errors.ts";
import { PAYMENT_ENDED_UNPAID, PAYMENT_OPEN, type PaymentState } from "../domain/lifecycle.ts";
import type { Db } from "../stores/postgres.ts";
import { payments } from "../stores/schema.ts";

export type Payment = typeof payments.$inferSelect;
export type NewPayment = typeof payments.$inferInsert;
/** What a hold needs to know of its payment to be brought in line with it. */
export type PaymentOutcome = Pick<
  Payment,
  "saleId" | "reference" | "reservationKey" | "state" | "declineCode" | "late"
>;

/** Reason of a cancelled payment whose units were not there to be claimed: its hold cannot stay. */
export const NO_UNITS = "no_units";

/**
 * Reason of a tombstone: the reference's row was never written, so nobody has waited in line or been asked for money.
 */
export const NOT_WRITTEN = "not_written";

/** Reason of a payment that Postgres could not claim for, because of what its own row holds. */
export const UNUSABLE = "unusable";

/** Attention of a capture that came late and was honoured. */
export const HONOURED = "captured late, and honoured";
/** Attention of a capture that came late and is on its way back. */
export const CAPTURED_LATE = "captured late";
/** Told by the audit: the order stands, and the gateway's list has no such capture. */
export const DENIED = "captured, and the gateway's list denies it";

/** Waits for a person's decision; the two notes above speak of what was done already. */
export const needsPerson = sql`(attention is not null and attention not in (${HONOURED}, ${CAPTURED_LATE})
  and state in ('sending', 'action_required', 'unknown', 'captured', 'refunding'))`;

export const inMs = (ms: number) => sql`now() + ${ms} * interval '1 millisecond'`;

const COLUMNS = Object.entries(getTableColumns(payments)).map(
  ([property, column]) => [property as keyof NewPayment, column.name] as const,
);

/** A row to be, and the epoch of the Redis in which its hold was pinned; a tombstone has no pin. */
export type RowToInsert = NewPayment & { pinnedIn?: number };

/**
 * Inserts rows that are not there yet; answers the references that were inserted (rule H: one live payment per
 * reservation). A row whose pin is of an older epoch is not: the rebuild in between did not see it, so its unit is on
 * offer again (rule I, for the row as for the claim). One JSON parameter for all rows: a parameter for each column of
 * each row took longer to write down than the insert itself.
 */
export async function insertPayments(db: Db, rows: RowToInsert[]): Promise<Set<string>> {
  const queuedAt = new Date().toISOString();
  const records = rows.map((row) => {
    const record: Record<string, unknown> = { fence: 0, claimed: false, late: false, sends: 0, queued_at: queuedAt };
    // A column that is not named is null.
    for (const [property, name] of COLUMNS) {
      const value = row[property];
      if (value !== undefined && value !== null) record[name] = value;
    }
    return record;
  });
  const pins = Object.fromEntries(rows.flatMap((r) => (r.pinnedIn === undefined ? [] : [[r.reference, r.pinnedIn]])));
  const saleIds = [...new Set(rows.map((r) => r.saleId))];
  const inserted = await db.execute<{ reference: string }>(sql`
    with stands as (
      select sale_id, epoch from epochs
      where sale_id in (select json_array_elements_text(${JSON.stringify(saleIds)}::json)) and stopped_why is null
      for share
    )
    insert into payments
    select p.* from json_populate_recordset(null::payments, ${JSON.stringify(records)}::json) p
      join stands using (sale_id)
    where coalesce((${JSON.stringify(pins)}::jsonb ->> p.reference)::int, stands.epoch) = stands.epoch
    on conflict do nothing returning reference`);
  return new Set(inserted.map((r) => r.reference));
}

export async function findPayment(db: Db, reference: string): Promise<Payment | undefined> {
  const [row] = await db.select().from(payments).where(eq(payments.reference, reference));
  return row;
}

export function findPayments(db: Db, references: string[]): Promise<Payment[]> {
  return references.length === 0
    ? Promise.resolve([])
    : db.select().from(payments).where(inArray(payments.reference, references));
}

/**
 * Of sales that do not stand: what nobody has asked the gateway about must not end while Postgres may be an older copy.
 */
export const whileSelling = sql`not exists
  (select 1 from epochs e where e.sale_id = ${payments.saleId} and e.stopped_why is not null)`;

/** queued -> cancelled: never sent. Answers the row if it was this call that ended it, or had been ended so before. */
export async function cancelQueued(db: Db, references: string[], why: string): Promise<Payment[]> {
  if (references.length === 0) return [];
  await db
    .update(payments)
    .set({ state: "cancelled", declineCode: why, token: null, endedAt: sql`now()`, checkAt: null })
    .where(and(inArray(payments.reference, references), eq(payments.state, "queued"), whileSelling));
  return findPayments(db, references);
}

/**
 * Takes an open payment over to ask the gateway about it: raises the fence, so that whoever asked before can no longer
 * write an outcome, and puts the next look-up off. Null when another instance was faster or it is no longer open.
 */
export async function takeOver(
  db: Db,
  reference: string,
  fence: number,
  nextLookMs: number,
  sends: boolean,
): Promise<Payment | null> {
  const [row] = await db
    .update(payments)
    .set({
      fence: sql`${payments.fence} + 1`,
      checkAt: inMs(nextLookMs),
      lookedAt: sql`now()`,
      ...(sends && { sends: sql`${payments.sends} + 1`, sentAt: sql`now()` }),
    })
    .where(
      and(eq(payments.reference, reference), eq(payments.fence, fence), inArray(payments.state, [...PAYMENT_OPEN])),
    )
    .returning();
  return row ?? null;
}

/**
 * A row that stands for "this reference was never sent and never will be": closes a pin whose payment was not written.
 */
export async function writeTombstone(
  db: Db,
  of: Pick<NewPayment, "reference" | "saleId" | "reservationId" | "reservationKey" | "customerId">,
): Promise<Payment> {
  const { reference, saleId, reservationId, reservationKey, customerId } = of;
  const p = { reference, saleId, reservationId, reservationKey, customerId };
  const nothing = {
    gateway: "none",
    tokenDigest: "",
    amount: 0,
    currency: "",
    lines: [],
    contact: { email: "", name: "" },
    language: "en",
  };
  await insertPayments(db, [{ ...p, ...nothing, state: "cancelled", declineCode: NOT_WRITTEN, endedAt: new Date() }]);
  const written = await findPayment(db, p.reference);
  if (!written) throw new Unavailable(`the pin of ${p.reference} cannot be closed while its sale stands`);
  return written;
}

export const endedUnpaid = (p: Pick<Payment, "state">) =>
  (PAYMENT_ENDED_UNPAID as readonly PaymentState[]).includes(p.state);

/** Its hold must not stay paying: it ended unpaid, or it is late money on its way back. */
export const leavesHold = (p: Pick<Payment, "state" | "late">) => endedUnpaid(p) || p.late;
