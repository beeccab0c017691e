import type { Logger } from "pino";
import { CHANGES_CHANNEL } from "./keys.ts";
import { makeClient } from "./redis.ts";

/**
 * Hints that a reservation changed, over all instances. A hint can be lost, so whoever waits also checks again by
 * itself.
 */
export interface ChangeHints {
  /**
   * Resolves on the next hint for this reservation key, after `ms`, when the signal aborts, or when the process drains.
   * The signal is the waiting request's own: on one that lives as long as the process, thousands of listeners would be
   * searched for each that leaves.
   */
  next(key: string, ms: number, signal: AbortSignal): Promise<void>;
  close(): void;
}

export function connectChangeHints(urls: string[], log: Logger, draining: AbortSignal): ChangeHints {
  const waiting = new Map<string, Set<() => void>>();
  const client = makeClient(urls);
  client.on("error", (error: Error) => log.debug({ err: error }, "redis subscription"));
  // A subscription is kept by the client over reconnects, once it was made.
  client.on("ready", () => client.subscribe(CHANGES_CHANNEL).catch(() => {}));
  client.on("message", (_channel: string, keys: string) => {
    for (const key of keys.split(",")) for (const wake of waiting.get(key) ?? []) wake();
  });
  client.connect().catch(() => {});
  draining.addEventListener("abort", () => {
    for (const wakes of waiting.values()) for (const wake of wakes) wake();
  });

  return {
    next(key, ms, signal) {
      return new Promise((resolve) => {
        const done = () => {
          clearTimeout(timer);
          signal.removeEventListener("abort", done);
          const set = waiting.get(key);
          set?.delete(done);
          if (set?.size === 0) waiting.delete(key);
          resolve();
        };
        const timer = setTimeout(done, ms);
        signal.addEventListener("abort", done);
        if (signal.aborted || draining.aborted) return done();
        const set = waiting.get(key) ?? new Set();
        waiting.set(key, set.add(done));
      });
    },
    close: () => client.disconnect(),
  };
}
