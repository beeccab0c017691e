/** Hints inside this process that a loop has something to do; whoever misses one looks again by itself. */
import type { EventEmitter } from "node:events";

export type WorkHint = "line" | "look" | "refund" | "outbox";

/** Waits for a hint of this process, the time, or the signal. */
export function idle(work: EventEmitter, hint: WorkHint | "never", ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      work.off(hint, done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    work.once(hint, done);
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}
