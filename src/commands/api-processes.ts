/**
 * PROCESSES=n: this process keeps the worker's loops and starts n api processes that share the port. One that ends is
 * replaced; the metrics of all add up in /metrics. Every state that matters is in the stores, so a process may end at
 * any instruction.
 */

import cluster, { type Worker } from "node:cluster";
import type { Logger } from "pino";
import { AggregatorRegistry, type Registry } from "prom-client";
import { type Config, MAILS_FOLDER, settingsFor } from "../config.ts";
import { StartError } from "../domain/errors.ts";
import type { Metrics } from "../metrics.ts";
import { serviceProgram } from "../places.ts";

/** One that ends sooner after its start than this is waited for before the next is started. */
const SETTLED_MS = 5_000;
const RESTART_MS = 500;
const RESTART_MS_MAX = 10_000;
const FIGURES_MS = 1_000;

type Values = Awaited<ReturnType<Registry["getMetricsAsJSON"]>>;
type ToParent = { ask: number } | { values: Values; of: number };
type ToChild = { give: number } | { answer: number; text: string };

/** Whether this process is one of the api processes that another one started. */
export const isApiProcess = (): boolean => cluster.isWorker;

export interface ApiProcesses {
  /** Tells each to drain, and waits until all have ended. */
  close(): Promise<void>;
}

/** Starts the api processes; resolves when all of them listen. */
export async function startApiProcesses(
  config: Config,
  metrics: Metrics,
  log: Logger,
  mails: string | undefined,
): Promise<ApiProcesses> {
  const env = {
    ...settingsFor({ ...config, role: "api", processes: 1 }),
    ...(mails !== undefined && { [MAILS_FOLDER]: mails }),
  };
  let stopping = false;
  let soonEnded = 0;
  const timers = new Set<NodeJS.Timeout>();
  const waiting = new Map<number, { left: Set<number>; got: Values[]; done: () => void }>();
  let asked = 0;

  /** The metrics of every process, added up. One that does not answer in time is left out. */
  async function gather(): Promise<string> {
    const of = ++asked;
    const others = Object.values(cluster.workers ?? {}).filter((w) => w?.isConnected()) as Worker[];
    const got: Values[] = [];
    await new Promise<void>((resolve) => {
      if (others.length === 0) return resolve();
      const timer = setTimeout(resolve, FIGURES_MS);
      waiting.set(of, { left: new Set(others.map((w) => w.id)), got, done: () => resolve(clearTimeout(timer)) });
      for (const w of others) w.send({ give: of } satisfies ToChild);
    });
    waiting.delete(of);
    got.push(await metrics.registry.getMetricsAsJSON());
    return AggregatorRegistry.aggregate(got).metrics();
  }
  metrics.text = gather;

  function hear(worker: Worker, message: ToParent): void {
    if ("ask" in message) {
      void gather().then(
        (text) => worker.isConnected() && worker.send({ answer: message.ask, text } satisfies ToChild),
      );
    } else {
      const w = waiting.get(message.of);
      if (!w?.left.delete(worker.id)) return;
      w.got.push(message.values);
      if (w.left.size === 0) w.done();
    }
  }

  /** The first ones have to come up; later ones are tried again without end. */
  function start(first: boolean): Promise<void> {
    const worker = cluster.fork(env);
    const startedAt = performance.now();
    worker.on("message", (message: ToParent) => hear(worker, message));
    let up = false;
    let fail: (error: Error) => void = () => {};
    worker.once("exit", (code, signal) => {
      if (stopping) return;
      if (first && !up)
        return fail(
          new StartError(`an api process ended before it listened (${signal ?? code}): is port ${config.port} taken?`),
        );
      soonEnded = performance.now() - startedAt < SETTLED_MS ? soonEnded + 1 : 0;
      const inMs = soonEnded === 0 ? 0 : Math.min(RESTART_MS * 2 ** (soonEnded - 1), RESTART_MS_MAX);
      log.error({ pid: worker.process.pid, code, signal, inMs }, "an api process ended; another one takes its place");
      const timer = setTimeout(() => {
        timers.delete(timer);
        void start(false);
      }, inMs);
      timers.add(timer);
    });
    return new Promise((resolve, reject) => {
      fail = reject;
      worker.once("listening", () => {
        up = true;
        resolve();
      });
    });
  }

  // The same code as here, also when the sources or dist/ have changed meanwhile.
  cluster.setupPrimary({ exec: serviceProgram()[1] });
  await Promise.all(Array.from({ length: config.processes }, () => start(true)));
  return {
    async close() {
      stopping = true;
      for (const timer of timers) clearTimeout(timer);
      const running = Object.values(cluster.workers ?? {}) as Worker[];
      await Promise.all(
        running.map((w) => {
          const ended = new Promise((resolve) => w.once("exit", resolve));
          w.kill("SIGTERM");
          return ended;
        }),
      );
    },
  };
}

/** In an api process: gives its metrics when asked, and has /metrics answer with those of all. */
export function shareMetrics(metrics: Metrics): void {
  const waiting = new Map<number, (text: string) => void>();
  let asked = 0;
  process.on("message", (message: ToChild) => {
    if ("give" in message) {
      void metrics.registry
        .getMetricsAsJSON()
        .then((values) => process.connected && process.send?.({ values, of: message.give } satisfies ToParent));
    } else if ("answer" in message) {
      waiting.get(message.answer)?.(message.text);
      waiting.delete(message.answer);
    }
  });
  metrics.text = () =>
    new Promise((resolve, reject) => {
      const ask = ++asked;
      const timer = setTimeout(() => {
        waiting.delete(ask);
        reject(new Error("the parent process did not answer with the metrics"));
      }, FIGURES_MS * 2);
      waiting.set(ask, (text) => {
        clearTimeout(timer);
        resolve(text);
      });
      process.send?.({ ask } satisfies ToParent);
    });
}
