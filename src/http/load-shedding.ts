/**
 * Shedding: bounded work in flight by class, in order of priority. Paying and giving a bag back come before reserving,
 * and both before reading; operators and health checks are always answered. The second signal is how late the event
 * loop is, because requests wait there before our code sees them. The least of the last few readings counts (as in
 * CoDel), so that one pause sheds nothing.
 */
import { Overloaded } from "../domain/errors.ts";

export type Priority = "finish" | "reserve" | "read";

/** Of IN_FLIGHT_MAX. Those who finish may wait for their payment inside the request, so there are many of them. */
const SHARE: Record<Priority, number> = { finish: 4, reserve: 1, read: 0.5 };
const LATE_MS: Record<Priority, number> = { finish: 3_000, reserve: 750, read: 400 };
const TICK_MS = 50;
const READINGS = 5;

export function makeLoadShedding(inFlightMax: number, signal: AbortSignal) {
  const inFlight: Record<Priority, number> = { finish: 0, reserve: 0, read: 0 };
  const max = (m: Priority) => Math.max(1, Math.floor(inFlightMax * SHARE[m]));
  const maxOf: Record<Priority, number> = { finish: max("finish"), reserve: max("reserve"), read: max("read") };
  const readings = new Array<number>(READINGS).fill(0);
  let n = 0;
  let lateMs = 0;
  let expected = performance.now() + TICK_MS;
  const tick = setInterval(() => {
    const now = performance.now();
    readings[n++ % READINGS] = now - expected;
    lateMs = Math.min(...readings);
    expected = now + TICK_MS;
  }, TICK_MS).unref();
  signal.addEventListener("abort", () => clearInterval(tick));

  return {
    /** Throws Overloaded: nothing was done. Whoever was let in must leave. */
    enter(m: Priority | undefined): void {
      if (m === undefined) return;
      if (inFlight[m] >= maxOf[m] || lateMs > LATE_MS[m]) throw new Overloaded("too many requests are waiting");
      inFlight[m]++;
    },
    leave(m: Priority | undefined): void {
      if (m !== undefined) inFlight[m]--;
    },
  };
}
