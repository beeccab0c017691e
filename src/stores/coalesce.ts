import { Overloaded } from "../domain/errors.ts";
import { isDataError } from "./refused.ts";

/** Of one request of a batch. */
export type Outcome<Result> = { result: Result } | { error: unknown };

/**
 * Runs a batch. One that a store refuses for its data is halved, and halved again, until only the guilty stand alone:
 * one among 128 costs some fifteen calls, and none of the others fails for it. `tell` hears of each request as soon as
 * it is settled, by its place in the batch. Any other error says nothing about what was asked: it is the error of each,
 * and nothing is tried again.
 */
export async function apart<Request, Result>(
  run: (batch: Request[]) => Promise<Result[]>,
  batch: Request[],
  tell: (at: number, outcome: Outcome<Result>) => void,
  isRefusal: (error: unknown) => boolean = isDataError,
): Promise<void> {
  async function part(from: number, to: number): Promise<void> {
    try {
      const results = await run(from === 0 && to === batch.length ? batch : batch.slice(from, to));
      for (let i = from; i < to; i++) tell(i, { result: results[i - from] as Result });
    } catch (error) {
      if (to - from > 1 && isRefusal(error)) {
        const middle = (from + to) >> 1;
        await part(from, middle);
        await part(middle, to);
      } else for (let i = from; i < to; i++) tell(i, { error });
    }
  }
  if (batch.length > 0) await part(0, batch.length);
}

/**
 * The same where there is nothing to answer: runs as much of the batch as the store takes, gives each guilty one to
 * `refused`, and throws what is unknown.
 */
export async function withoutGuilty<Request>(
  run: (batch: Request[]) => Promise<unknown>,
  batch: Request[],
  refused: (one: Request, error: unknown) => unknown,
): Promise<void> {
  const guilty: Array<[Request, unknown]> = [];
  const unknown: unknown[] = [];
  const answers = async (some: Request[]) => {
    await run(some);
    return some;
  };
  await apart(answers, batch, (at, outcome) => {
    if (!("error" in outcome)) return;
    if (isDataError(outcome.error)) guilty.push([batch[at] as Request, outcome.error]);
    else unknown.push(outcome.error);
  });
  for (const [one, error] of guilty) await refused(one, error);
  if (unknown.length > 0) throw unknown[0];
}

/**
 * Gathers single requests into batches: at most one batch is under way, and the next gathers meanwhile. Under load one
 * call then carries many requests (three times cheaper for Redis: docs/measurements.md#batching); alone, a request goes
 * out at once. Between two batches there is a short pause, so that under load a batch is worth its call, its sync to
 * disk and its journal entry; a request that comes alone never meets it. An error of the batch is the error of each of
 * its requests: unknown, to be repeated with the same id. Only what a store refuses for its data is the guilty one's
 * alone (`apart`).
 */
export function coalesce<Request, Result>(
  run: (batch: Request[]) => Promise<Result[]>,
  limits: { batchMax: number; waitingMax: number; enough: number; gatherMs: number },
  isRefusal: (error: unknown) => boolean = isDataError,
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
      const requests = batch.map((w) => w.request);
      const tell = (at: number, outcome: Outcome<Result>) => {
        const w = batch[at] as Waiting;
        if ("error" in outcome) w.reject(outcome.error);
        else w.resolve(outcome.result);
      };
      await apart(run, requests, tell, isRefusal);
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
