/** The sandbox gateway's ledger: a file of lines, each on the disk before it is answered for. */
import { type FileHandle, mkdir, open, readFile } from "node:fs/promises";
import { dirname } from "node:path";

export interface Ledger {
  /** What it held when it was opened. */
  lines: string[];
  /** Resolves when the line is on the disk. */
  append(line: string): Promise<void>;
  close(): Promise<void>;
}

/** Without a path nothing is kept. */
export async function openLedger(path: string | undefined): Promise<Ledger> {
  if (!path) return { lines: [], append: async () => {}, close: async () => {} };
  await mkdir(dirname(path), { recursive: true });
  const text = await readFile(path, "utf8").catch(() => "");
  const file: FileHandle = await open(path, "a");
  // A line that was cut off by a crash was never answered for.
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  const size = Buffer.byteLength(whole);
  if (text !== "" && !text.endsWith("\n")) await file.truncate(size);
  const append = appender(file, size);
  return { lines: whole.split("\n").filter(Boolean), append, close: () => file.close() };
}

/** Appends lines and syncs them, many at a time. */
function appender(file: FileHandle, sizeNow: number): (line: string) => Promise<void> {
  let size = sizeNow;
  let waiting: Array<{ line: string; resolve: () => void; reject: (e: unknown) => void }> = [];
  let busy = false;
  async function flush() {
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      try {
        const lines = Buffer.from(`${batch.map((w) => w.line).join("\n")}\n`);
        await file.appendFile(lines);
        await file.datasync();
        size += lines.length;
        for (const w of batch) w.resolve();
      } catch (error) {
        // Half a line must not stand before the next one.
        await file.truncate(size).catch(() => {});
        for (const w of batch) w.reject(error);
      }
    }
    busy = false;
  }
  return (line) =>
    new Promise((resolve, reject) => {
      waiting.push({ line, resolve, reject });
      if (!busy) {
        busy = true;
        void flush();
      }
    });
}
