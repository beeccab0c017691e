/**
 * The payment rows: every way they change, each a guarded statement. A statement that changes no row means that someone
 * else decided; callers read again and act on what is stored (rule B).
 */

import { and, eq, getTableColumns, inArray, sql } from "drizzle-orm";
import { NotEnough, Unavailable } from "../domain/errors.ts";
import {
  assertPaymentStep,
  lateStatesBefore,
  PAYMENT_ENDED_UNPAID,
  PAYMENT_OPEN,
  type PaymentState,
} from "../domain/lifecycle.ts";
import type { OrderLine } from "../domain/order.ts";
import type { Db, Tx } from "../stores/postgres.ts";
import { epochs, items, payments } from "../stores/schema.ts";

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

/** Units per item of some payments, in order of sku, so that two transactions never lock items crosswise. */
function unitsBySku(lines: OrderLine[]): Array<[string, number]> {
  const units = new Map<string, number>();
  for (const l of lines) units.set(l.sku, (units.get(l.sku) ?? 0) + l.quantity);
  return [...units].sort(([a], [b]) => (a < b ? -1 : 1));
}

async function claimUnits(tx: Tx, saleId: string, lines: OrderLine[]): Promise<void> {
  for (const [sku, n] of unitsBySku(lines)) {
    const changed = await tx
      .update(items)
      .set({ claimed: sql`${items.claimed} + ${n}` })
      .where(and(eq(items.saleId, saleId), eq(items.sku, sku), sql`${items.claimed} + ${n} <= ${items.granted}`))
      .returning({ sku: items.sku });
    if (changed.length === 0) throw new NotEnough();
  }
}

export async function unclaimUnits(tx: Tx, saleId: string, lines: OrderLine[]): Promise<void> {
  for (const [sku, n] of unitsBySku(lines)) {
    await tx
      .update(items)
      .set({ claimed: sql`${items.claimed} - ${n}` })
      .where(and(eq(items.saleId, saleId), eq(items.sku, sku)));
  }
}

/**
 * Of sales that do not stand: what nobody has asked the gateway about must not end while Postgres may be an older copy.
 */
export const whileSelling = sql`not exists
  (select 1 from epochs e where e.sale_id = ${payments.saleId} and e.stopped_why is not null)`;

/** Rule I: the claim holds the epoch still, and refuses one that a rebuild has raised, or a sale that was stopped. */
async function epochStands(tx: Tx, saleId: string, epoch: number): Promise<boolean> {
  const [row] = await tx
    .select({ epoch: epochs.epoch, stoppedWhy: epochs.stoppedWhy })
    .from(epochs)
    .where(eq(epochs.saleId, saleId))
    .for("share");
  return row?.epoch === epoch && row.stoppedWhy === null;
}

export type Claim = { outcome: "CLAIMED"; payment: Payment } | { outcome: "NOT_QUEUED" | "NO_UNITS" | "OLD_EPOCH" };

/**
 * queued -> sending and the claim of its units, in one transaction, before the gateway is called. If it fails nobody is
 * charged. `leaseMs` later reconcile may look: by then the call cannot be running any more.
 */
export async function claimForSending(db: Db, reference: string, epoch: number, leaseMs: number): Promise<Claim> {
  try {
    return await db.transaction(async (tx): Promise<Claim> => {
      const [payment] = await tx
        .update(payments)
        .set({
          state: "sending",
          claimed: true,
          fence: sql`${payments.fence} + 1`,
          sends: 1,
          sentAt: sql`now()`,
          firstSentAt: sql`now()`,
          checkAt: inMs(leaseMs),
        })
        .where(and(eq(payments.reference, reference), eq(payments.state, "queued")))
        .returning();
      if (!payment) return { outcome: "NOT_QUEUED" };
      if (!(await epochStands(tx, payment.saleId, epoch))) throw new OldEpoch();
      await claimUnits(tx, payment.saleId, payment.lines);
      return { outcome: "CLAIMED", payment };
    });
  } catch (error) {
    if (error instanceof NotEnough) return { outcome: "NO_UNITS" };
    if (error instanceof OldEpoch) return { outcome: "OLD_EPOCH" };
    throw error;
  }
}

class OldEpoch extends Error {}

/**
 * Cash on delivery: queued -> captured and the claim, for many payments of one sale at once, since no gateway is in
 * between. Answers those it captured; null when the units of the batch do not all fit, or its epoch is old: nothing was
 * done.
 */
export async function claimAtOnce(
  db: Db,
  saleId: string,
  references: string[],
  epoch: number,
): Promise<PaymentOutcome[] | "NO_UNITS" | "OLD_EPOCH"> {
  assertPaymentStep("queued", "captured");
  try {
    return await db.transaction(async (tx) => {
      if (!(await epochStands(tx, saleId, epoch))) throw new OldEpoch();
      const done = await tx.execute<{ reference: string; reservation_key: string; lines: OrderLine[] }>(sql`
        update payments set state = 'captured', claimed = true, fence = fence + 1, token = null,
          captured_at = now(), check_at = null
        where reference in (select json_array_elements_text(${JSON.stringify(references)}::json)) and state = 'queued'
        returning reference, reservation_key, lines`);
      await claimUnits(
        tx,
        saleId,
        done.flatMap((p) => p.lines),
      );
      return done.map((p) => ({
        saleId,
        reference: p.reference,
        reservationKey: p.reservation_key,
        state: "captured" as const,
        declineCode: null,
        late: false,
      }));
    });
  } catch (error) {
    if (error instanceof NotEnough) return "NO_UNITS";
    if (error instanceof OldEpoch) return "OLD_EPOCH";
    throw error;
  }
}

/**
 * Ended unpaid -> captured (LATE_STEPS, rule N): money that came late, while its units can still be claimed and no
 * other payment of the reservation is live. Null when that is not so: then the money is to be refunded.
 */
export async function claimLate(
  db: Db,
  reference: string,
  chargeId: string,
  saleId: string,
  epoch: number,
): Promise<PaymentOutcome | null> {
  try {
    return await db.transaction(async (tx) => {
      if (!(await epochStands(tx, saleId, epoch))) throw new OldEpoch();
      const [row] = await tx
        .update(payments)
        .set({
          state: "captured",
          claimed: true,
          chargeId,
          declineCode: null,
          endedAt: null,
          attention: HONOURED,
          capturedAt: sql`now()`,
          checkAt: null,
          fence: sql`${payments.fence} + 1`,
        })
        .where(and(eq(payments.reference, reference), inArray(payments.state, lateStatesBefore("captured"))))
        .returning();
      if (row) await claimUnits(tx, saleId, row.lines);
      return row ?? null;
    });
  } catch (error) {
    if (error instanceof NotEnough || isOtherLive(error)) return null;
    throw error; // an old epoch too: it is tried again
  }
}

/** queued -> captured for a payment that was captured after the copy of Postgres was made that we run on. */
export async function claimRecovered(tx: Tx, reference: string, chargeId: string | null): Promise<void> {
  const [row] = await tx
    .update(payments)
    .set({
      state: "captured",
      claimed: true,
      chargeId,
      token: null,
      capturedAt: sql`now()`,
      checkAt: null,
      fence: sql`${payments.fence} + 1`,
    })
    .where(and(eq(payments.reference, reference), eq(payments.state, "queued")))
    .returning();
  if (row) await claimUnits(tx, row.saleId, row.lines);
}

/** A payment that Postgres had lost, as the gateway or its hold tells of it. Its contact is not known. */
export async function insertRecovered(
  tx: Tx,
  p: Pick<
    NewPayment,
    | "reference"
    | "saleId"
    | "reservationId"
    | "reservationKey"
    | "customerId"
    | "gateway"
    | "amount"
    | "currency"
    | "lines"
    | "chargeId"
  >,
): Promise<void> {
  await tx.insert(payments).values({
    ...p,
    tokenDigest: "",
    contact: { email: "", name: "" },
    language: "en",
    state: "captured",
    claimed: true,
    capturedAt: sql`now()`,
    attention: "recovered: its contact is not known",
  });
  await claimUnits(tx, p.saleId, p.lines);
}

/** Rule H: the unique index over a reservation's live payments refused. */
const isOtherLive = (error: unknown) => (error as { cause?: { code?: string } }).cause?.code === "23505";

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
