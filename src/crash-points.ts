/**
 * Crash points. Every call that leaves this process on the way of a sale stands inside `around` with a label. A test
 * asks for one by `FUKUBUKURO_CRASH=label:phase`, and the process kills itself there as `kill -9` would; without it
 * nothing happens. The phases:
 *
 *   before    nothing was sent
 *   sent      the other side has it, and may have done it; no answer was read
 *   answered  done, and nothing was made of the answer
 */
import { told } from "./config.ts";

export const PHASES = ["before", "sent", "answered"] as const;

const asked = told.crash;
/** A call over HTTP or SMTP needs a connection first; stores are connected. */
const SLOW_TO_SEND = /^(gateway|mail)\./;
const CONNECT_MS = 12;
const WORK_MS = 40;

const die = () => process.kill(process.pid, "SIGKILL");
const turn = () => new Promise((resolve) => setImmediate(resolve));

export function around<T>(label: string, call: () => Promise<T>): Promise<T> {
  return asked === undefined || !asked.startsWith(`${label}:`) ? call() : crashAround(label, call);
}

async function crashAround<T>(label: string, call: () => Promise<T>): Promise<T> {
  if (asked === `${label}:before`) die();
  const answer = call();
  if (asked === `${label}:sent`) {
    answer.catch(() => {});
    if (SLOW_TO_SEND.test(label)) await new Promise((resolve) => setTimeout(resolve, CONNECT_MS));
    for (let i = 0; i < 3; i++) await turn();
    // The other side works; we do not hear of it.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, WORK_MS);
    die();
  }
  const settled = await answer;
  if (asked === `${label}:answered`) die();
  return settled;
}
