/**
 * Telling a store's refusal of what it was given from a store that failed: only the former may be split and asked again
 * (an error means unknown).
 */
import { ArgumentRefused, NotStorable } from "../domain/errors.ts";

/**
 * What was refused: `value` a value that the store cannot keep, `rule` a constraint of ours; null for anything else.
 * Postgres' classes 22 (data exception) and 23 (integrity constraint), and a script's own refusal, also behind
 * wrappers: such a statement is carried out not at all, and would be refused again. A lost link or a timeout says
 * nothing about what was asked.
 */
export function refusalOf(error: unknown): "value" | "rule" | null {
  for (let e = error, depth = 0; e instanceof Error && depth < 5; e = e.cause, depth++) {
    if (e instanceof ArgumentRefused) return "value";
    const code = (e as { code?: unknown }).code;
    if (typeof code !== "string" || !/^2[23][0-9A-Z]{3}$/.test(code)) continue;
    return code.startsWith("22") ? "value" : "rule";
  }
  return null;
}

export const isDataError = (error: unknown): boolean => refusalOf(error) !== null;

/**
 * Of a request that was refused alone for a value it carries: the caller is told so. Whatever else was refused is our
 * own fault, and goes on as it is.
 */
export function ownFault(error: unknown): never {
  if (refusalOf(error) !== "value") throw error;
  throw new NotStorable("", "holds a value that cannot be stored");
}

/**
 * A text of unknown origin, such as another server's error, made fit to be stored: NUL and halves of surrogate pairs
 * are replaced.
 */
export const storable = (given: string, max: number): string => given.slice(0, max).replace(/[\0\p{Cs}]/gu, "\ufffd");
