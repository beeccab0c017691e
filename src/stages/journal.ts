/**
 * The journal's entries as persist and rebuild read them. One entry is one script call, with up to 128 transitions of
 * as many requests.
 */
import { NewerEntry } from "../domain/errors.ts";

const JOURNAL_VERSION = "1";

export interface Transition {
  key: string;
  letter: string;
  deadlineMs: number;
  reference: string;
  lines: string;
  customerId: string;
}
export interface JournalEntry {
  id: string;
  epoch: number;
  seq: number;
  atMs: number;
  transitions: Transition[];
  /** Lines that are no transition: theirs alone is the fault. */
  unread?: string[];
}

export type RawEntry = [id: string, fields: string[] | null];

/** Throws when an entry as a whole cannot be read: it is not ours to guess. */
export function parseEntry([id, fields]: RawEntry): JournalEntry {
  const f: Record<string, string> = {};
  for (let i = 0; fields && i < fields.length; i += 2) f[fields[i] as string] = fields[i + 1] as string;
  if (Number(f.v) > Number(JOURNAL_VERSION))
    throw new NewerEntry(`journal entry of version ${f.v}, this process knows ${JOURNAL_VERSION}`);
  if (f.v !== JOURNAL_VERSION) throw new Error(`journal entry of version ${f.v} is not known`);
  const [epoch, seq, atMs] = [Number(f.e), Number(f.s), Number(f.t)];
  if (![epoch, seq, atMs].every(Number.isSafeInteger)) throw new Error("a journal entry's numbers cannot be read");
  const transitions: Transition[] = [];
  const unread: string[] = [];
  for (const line of (f.b ?? "").split("\n")) {
    const m = /^([A-Za-z0-9_-]{22})\|([hpcrx])\|(\d{1,15})\|([^|]*)\|([^|]*)\|(.+)$/s.exec(line);
    if (!m) {
      unread.push(line);
      continue;
    }
    const [, key, letter, deadline, reference, lines, customerId] = m as unknown as [
      string,
      string,
      string,
      string,
      string,
      string,
      string,
    ];
    transitions.push({ key, letter, deadlineMs: Number(deadline), reference, lines, customerId });
  }
  return { id, epoch, seq, atMs, transitions, unread };
}

/** A transition as its journal line. */
export const lineOf = (t: Transition): string =>
  [t.key, t.letter, t.deadlineMs, t.reference, t.lines, t.customerId].join("|");

/**
 * An entry by hold: what can be written without the rest of it. The transitions of one hold stay together, since the
 * last of them counts.
 */
export function byHold(entry: JournalEntry): JournalEntry[] {
  const holds = new Map<string, Transition[]>();
  for (const t of entry.transitions) holds.set(t.key, [...(holds.get(t.key) ?? []), t]);
  return [...holds.values()].map((transitions) => ({ ...entry, transitions, unread: [] }));
}
