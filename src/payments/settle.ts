/** What the gateway said is written down: one guarded statement for each kind of answer, and when to ask again. */
import { and, eq, inArray, type SQL, sql } from "drizzle-orm";
import type { PgUpdateSetSource } from "drizzle-orm/pg-core";
import { PAYMENT_OPEN, type PaymentState, paymentStatesBefore } from "../domain/lifecycle.ts";
import type { GatewayAnswer } from "../gateways/port.ts";
import type { Db, Tx } from "../stores/postgres.ts";
import { payments } from "../stores/schema.ts";
import { unclaimUnits } from "./claim.ts";
import { CAPTURED_LATE, findPayment, inMs, type Payment } from "./rows.ts";

const LOOK_UP_MS = 1_000;
const LOOK_UP_MS_MAX = 30_000;
/**
 * The shopper is at the gateway's page: seldom, since coming back is noticed (http/returned.ts). With many there still
 * rarer: actionLookMs.
 */
export const ACTION_LOOK_UP_MS = 30_000;
/** A look-up of those that failed, or is due at the end of their time. */
const ACTION_LOOK_AGAIN_MS = 5_000;
/** Trouble that lasts so long is told to a person; a moment's heals by itself. */
const TROUBLE_TOLD_MS = 60_000;
/** The gateway answers, and says that it is at work on it or cannot be reached. */
const DELAY_TOLD_MS = 600_000;
const TROUBLE_LOOK_MS_MAX = 7_200_000;

type Answer<K extends GatewayAnswer["outcome"]> = Extract<GatewayAnswer, { outcome: K }>;
type Change = PgUpdateSetSource<typeof payments>;

const isFine: Change = { troubledSince: null, attention: null };
const troubledMs = sql`extract(epoch from now() - coalesce(${payments.troubledSince}, now())) * 1000`;

/** A quarter of the time that the trouble has lasted: soon after one odd answer, hours apart when it lasts for days. */
export function afterTrouble(msMin: number): SQL {
  return sql`now() + least(greatest(${troubledMs} / 4, ${msMin}), ${TROUBLE_LOOK_MS_MAX}) * interval '1 millisecond'`;
}

/**
 * Why a person should look, once it has lasted; what was told before stands, unless it only noted that the money came
 * late.
 */
export function toldAfter(ms: number, why: string): SQL {
  const { attention } = payments;
  const isFree = sql`coalesce(${attention}, ${CAPTURED_LATE}) = ${CAPTURED_LATE}`;
  return sql`case when ${isFree} and ${troubledMs} >= ${ms} then ${why}::text else ${attention} end`;
}
export const isTroubled: Change = { troubledSince: sql`coalesce(${payments.troubledSince}, now())` };

interface Settling {
  tx: Tx;
  asked: Payment;
  /** The age of the question, and the usual time until it is asked again. */
  ageMs: number;
  lookAgainMs: number;
  actionDeadlineMs: number;
  actionLookMs: number;
}

/** Writes under the fence it was asked with; only a state from which `to` may be reached, or that state itself. */
async function write({ tx, asked }: Settling, to: PaymentState | null, change: Change): Promise<Payment | undefined> {
  const from = to === null ? [...PAYMENT_OPEN] : paymentStatesBefore(to).concat(to === asked.state ? [to] : []);
  const [row] = await tx
    .update(payments)
    .set(to === null ? change : { ...change, state: to })
    .where(and(eq(payments.reference, asked.reference), eq(payments.fence, asked.fence), inArray(payments.state, from)))
    .returning();
  return row;
}

function captured(s: Settling, answer: Answer<"captured">) {
  const { amount, currency } = s.asked;
  if (answer.amount === amount && answer.currency === currency)
    return write(s, "captured", {
      ...isFine,
      chargeId: answer.chargeId,
      token: null,
      capturedAt: sql`now()`,
      actionUrl: null,
      checkAt: null,
      capturedAmount: null,
      capturedCurrency: null,
    });
  // Money moved, but not what was asked for: the units stay claimed and a person decides, unless a later look is fine.
  return write(s, "unknown", {
    ...isTroubled,
    attention: `the gateway captured ${answer.amount} ${answer.currency} instead of ${amount} ${currency}`,
    chargeId: answer.chargeId,
    capturedAmount: answer.amount,
    capturedCurrency: answer.currency,
    checkAt: afterTrouble(LOOK_UP_MS),
  });
}

async function ended(s: Settling, answer: Answer<"declined"> | Answer<"cancelled">): Promise<void> {
  const code = answer.outcome === "declined" && { declineCode: answer.declineCode, chargeId: answer.chargeId };
  const change = { claimed: false, token: null, actionUrl: null, checkAt: null, endedAt: sql`now()`, ...code };
  const row = await write(s, answer.outcome, { ...isFine, ...change });
  if (row) await unclaimUnits(s.tx, row.saleId, row.lines);
}

function actionRequired(s: Settling, answer: Answer<"action_required">) {
  const deadline = sql`coalesce(${payments.actionDeadline}, ${inMs(s.actionDeadlineMs)})`;
  return write(s, "action_required", {
    ...isFine,
    actionUrl: answer.actionUrl,
    actionDeadline: deadline,
    checkAt: sql`least(${inMs(s.actionLookMs)}, greatest(${deadline}, ${inMs(ACTION_LOOK_AGAIN_MS)}))`,
  });
}

function unknown(s: Settling, { why }: Answer<"unknown">) {
  const change = { ...isTroubled, attention: toldAfter(TROUBLE_TOLD_MS, why) };
  // Waiting for the shopper's approval stays what it is when only a look-up failed.
  return s.asked.state === "action_required"
    ? write(s, "action_required", { ...change, checkAt: afterTrouble(ACTION_LOOK_AGAIN_MS) })
    : write(s, "unknown", { ...change, checkAt: afterTrouble(LOOK_UP_MS) });
}

function notYet(s: Settling, answer: Answer<"pending" | "not_found" | "not_done">) {
  if (answer.outcome === "not_found") {
    // While our call may still be on its way there is little to learn: at twice the age.
    const again = Math.min(Math.max(LOOK_UP_MS, s.ageMs), LOOK_UP_MS_MAX);
    return write(s, null, { checkAt: inMs(again) });
  }
  const why = answer.outcome === "not_done" ? answer.why : "the gateway says that it is still working on it";
  // Known not to have been done: it does not count as sent, and need not wait for a lease.
  const notSent = answer.outcome === "not_done" && {
    sends: sql`greatest(${payments.sends} - 1, 0)`,
    sentAt: null,
  };
  const change = { ...isTroubled, attention: toldAfter(DELAY_TOLD_MS, why), checkAt: inMs(s.lookAgainMs) };
  return write(s, null, { ...change, ...notSent });
}

function refunded(s: Settling) {
  const attention = "the gateway says refunded, and no refund was asked for";
  return write(s, "unknown", { ...isTroubled, attention, checkAt: afterTrouble(LOOK_UP_MS) });
}

function settle(s: Settling, answer: GatewayAnswer): Promise<unknown> {
  switch (answer.outcome) {
    case "captured":
      return captured(s, answer);
    case "declined":
    case "cancelled":
      return ended(s, answer);
    case "action_required":
      return actionRequired(s, answer);
    case "unknown":
      return unknown(s, answer);
    case "pending":
    case "not_found":
    case "not_done":
      return notYet(s, answer);
    case "refunded":
      return refunded(s);
  }
}

/**
 * Writes what the gateway said, under the fence it was asked with, and un-claims in the same transaction when it said
 * "no money". Answers the stored row, whoever wrote it.
 */
export async function settlePayment(
  db: Db,
  asked: Payment,
  answer: GatewayAnswer,
  actionDeadlineMs: number,
  actionLookMs = ACTION_LOOK_UP_MS,
): Promise<Payment> {
  // The older the question, the rarer it is asked.
  const ageMs = asked.firstSentAt ? Date.now() - asked.firstSentAt.getTime() : 0;
  const lookAgainMs = Math.min(Math.max(LOOK_UP_MS, ageMs / 4), LOOK_UP_MS_MAX);
  await db.transaction((tx) => settle({ tx, asked, ageMs, lookAgainMs, actionDeadlineMs, actionLookMs }, answer));
  return (await findPayment(db, asked.reference)) as Payment;
}
