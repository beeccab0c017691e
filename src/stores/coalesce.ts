import { Overloaded } from "../domain/errors.ts";

/**
 * Gathers single requests into batches: at most one batch is under way, and the next gathers meanwhile. Under load one
 * call then carries many requests (three times cheaper for Redis: docs/measurements.md#batching); alone, a request goes
 * out at once. Between two batches there is a short pause, so that under load a batch is worth its call, its sync to
 * disk and its journal entry; a request that comes alone never meets it. An error of the batch is the error of each of
 * its requests: unknown, to be repeated with the same id.
 */
export function coalesce<Request, Result>(
  run: (batch: Request[]) => Promise<Result[]>,
  limits: { batchMax: number; waitingMax: number; enough: number; gatherMs: number },
): (request: Request) => Promise<Result> {
  type Waiting = { request: Request; resolve: (r: Result) => void; reject: (e: unknown) => void };
  let waiting: Waiting[] = [];
  let busy = false;
  let goOn: (() => void) | null = null;

  /** Until there are enough for a batch that is worth its call, or the time is over. */
  function gathered(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => goOn?.(), limits.gatherMs);
      goOn = () => {
        clearTimeout(timer);
        goOn = null;
        resolve();
      };
    });
  }

  async function drain() {
    while (waiting.length > 0) {
      const batch = waiting.length <= limits.batchMax ? waiting : waiting.slice(0, limits.batchMax);
      waiting = batch === waiting ? [] : waiting.slice(limits.batchMax);
      try {
        const results = await run(batch.map((w) => w.request));
        for (let i = 0; i < batch.length; i++) (batch[i] as Waiting).resolve(results[i] as Result);
      } catch (error) {
        for (const w of batch) w.reject(error);
      }
      if (waiting.length < limits.enough) await gathered();
    }
    busy = false;
  }

  return (request) =>
    new Promise((resolve, reject) => {
      if (waiting.length >= limits.waitingMax) return reject(new Overloaded("too many requests are waiting"));
      waiting.push({ request, resolve, reject });
      if (goOn && waiting.length >= limits.enough) goOn();
      else if (!busy) {
        busy = true;
        // After the requests that this turn of the event loop still brings in.
        setImmediate(drain);
      }
    });
}
