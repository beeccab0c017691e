/**
 * What a text of a caller's may be: the one place that says so, for bodies, queries and headers. Postgres takes no NUL,
 * and JSON in it no half of a surrogate pair; no other control character belongs into a name, an address, a mail's line
 * or a spreadsheet's cell either.
 */
import { z } from "@hono/zod-openapi";

/** A control character (\p{Cc}), half of a surrogate pair (\p{Cs}), or one of the two separators that break a line. */
const UNFIT_FOR_A_LINE = /[\p{Cc}\p{Cs}\u2028\u2029]/u;
/** The same, with line breaks and tabs let through. */
const UNFIT_FOR_LINES = /[\p{Cs}\u2028\u2029]|(?![\n\r\t])\p{Cc}/u;
const VISIBLE_ASCII = /^[\x21-\x7e]+$/;

/** In code points, as JSON Schema counts: an emoji is one. */
function isLonger(text: string, max: number): boolean {
  if (text.length <= max) return false;
  if (text.length > 2 * max) return true;
  let n = 0;
  for (const _ of text) if (++n > max) return true;
  return false;
}

function textOf(max: number, unfit: RegExp, message: string) {
  return z
    .string()
    .refine((t) => !isLonger(t, max), { message: `must have at most ${max} characters`, abort: true })
    .refine((t) => !unfit.test(t), message)
    .openapi({ maxLength: max });
}

/** A text of one line, `max` code points at most. */
export const text = (max: number) =>
  textOf(max, UNFIT_FOR_A_LINE, "must be well-formed Unicode without control characters or line breaks");

/**
 * A text that may have line breaks and tabs: an address, and what a shop says of delivery, cancellation and the like.
 */
export const multilineText = (max: number) =>
  textOf(
    max,
    UNFIT_FOR_LINES,
    "must be well-formed Unicode without control characters other than line breaks and tabs",
  );

/** What a program made for programs: payment tokens. */
export const visibleAscii = (max: number) =>
  z.string().min(1).max(max).regex(VISIBLE_ASCII, "must be visible ASCII characters");

export const email = z.email().max(254);

/** An address that a browser can be sent to, percent-encoded as its address bar gives it. */
export const webUrl = (max: number) =>
  z
    .url({ protocol: /^https?$/ })
    .max(max)
    .regex(VISIBLE_ASCII, "must be percent-encoded: visible ASCII characters only");

const INSTANT_MIN = Date.UTC(2000, 0, 1);
const INSTANT_MAX = Date.UTC(2100, 0, 1);
/** Beyond these no sale was meant, and far beyond them no clock of a store goes. */
export const instant = z.iso
  .datetime({ offset: true })
  .refine((t) => Date.parse(t) >= INSTANT_MIN && Date.parse(t) < INSTANT_MAX, "must be between 2000 and 2100")
  .openapi({ example: "2027-01-01T00:00:00Z" });
