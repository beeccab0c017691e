/**
 * The claim: units bound to a payment in Postgres before any money moves, under the CHECK of items (promise P1). Each
 * of these is one transaction that holds the sale's epoch still.
 */
import { and, eq, inArray, sql } from "drizzle-orm";
import { NotEnough } from "../domain/errors.ts";
import { assertPaymentStep, lateStatesBefore } from "../domain/lifecycle.ts";
import type { OrderLine } from "../domain/order.ts";
import type { Db, Tx } from "../stores/postgres.ts";
import { epochs, items, payments } from "../stores/schema.ts";
import { HONOURED, inMs, type NewPayment, type Payment, type PaymentOutcome } from "./rows.ts";

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
