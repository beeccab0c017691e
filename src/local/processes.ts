/** Child processes of local mode that never outlive their parent, and ports that are free. */

import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { StartError } from "../domain/errors.ts";

/**
 * A shell of three lines between us and the server. Its standard input is a pipe from us: when we end for whatever
 * reason, kill -9 included, the pipe closes and the server is told to stop. It has a process group of its own, so that
 * Ctrl-C reaches us alone and the servers stop last.
 */
const GUARD = `
signal=$1; shift
exec 3<&0
"$@" 3<&- </dev/null & server=$!
trap 'kill -$signal $server 2>/dev/null' TERM INT HUP
{ cat <&3 >/dev/null 2>&1; kill -$signal $server 2>/dev/null; } & watch=$!
wait $server; code=$?
while kill -0 $server 2>/dev/null; do wait $server; code=$?; done
kill $watch 2>/dev/null
exit $code`;

const STOP_MS_MAX = 20_000;
const OUTPUT_MAX = 8_000;
const LAST_WORDS_MS_MAX = 1_000;

/** Something on this machine stands in the way; the message says what to do. */

export interface Guarded {
  child: ChildProcess;
  /** Rejects with what it printed when it ends before `ready` resolves. */
  endedEarly: Promise<never>;
  output(): string;
  /** Tells it to stop and waits until it has. */
  stop(): Promise<void>;
}

/** Starts a server that stops when this process does. `signal` is what asks it to stop. */
export function startGuarded(
  name: string,
  command: string[],
  o: { signal: "TERM" | "INT"; env?: Record<string, string>; onLine?: (line: string) => void },
): Guarded {
  const child = spawn("sh", ["-c", GUARD, `fukubukuro-${name}`, o.signal, ...command], {
    detached: true,
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...o.env },
  });
  let printed = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding("utf8").on("data", (chunk: string) => {
      printed = (printed + chunk).slice(-OUTPUT_MAX);
      if (stream === child.stdout) for (const line of chunk.split("\n")) if (line) o.onLine?.(line);
    });
  }
  child.stdin?.on("error", () => {});
  let stopping = false;
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.once("exit", () => child.stdin?.destroy());
  const printedAll = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const endedEarly = new Promise<never>((_, reject) => {
    child.once("error", reject);
    child.once("exit", async (code, signal) => {
      if (stopping) return;
      // What it printed may come after its end, and says whether it is worth another try. A process of its own could
      // hold the pipe for ever.
      await Promise.race([printedAll, new Promise((resolve) => setTimeout(resolve, LAST_WORDS_MS_MAX))]);
      reject(new StartError(`${name} ended (${signal ?? code}): ${printed.trim().split("\n").slice(-6).join(" | ")}`));
    });
  });
  endedEarly.catch(() => {});
  return {
    child,
    endedEarly,
    output: () => printed,
    async stop() {
      stopping = true;
      child.stdin?.end();
      const late = setTimeout(() => child.pid && kill(-child.pid, "SIGKILL"), STOP_MS_MAX);
      await ended;
      clearTimeout(late);
    },
  };
}

export function kill(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

/** Whether `pid` runs a program whose command line names `marker`; false where that cannot be told. */
export function runs(pid: number, marker: string): boolean {
  if (!Number.isInteger(pid) || pid <= 1 || !kill(pid, 0)) return false;
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(marker);
  } catch {
    return false;
  }
}

/** Ends a server that a killed run left behind, told by its pid file and command line. */
export async function endOrphan(pidFile: string, marker: string, signal: NodeJS.Signals): Promise<void> {
  let pid: number;
  try {
    pid = Number(readFileSync(pidFile, "utf8").split("\n")[0]);
  } catch {
    return;
  }
  if (!runs(pid, marker)) return;
  kill(pid, signal);
  for (let waited = 0; runs(pid, marker) && waited < STOP_MS_MAX; waited += 50)
    await new Promise((resolve) => setTimeout(resolve, 50));
}

function isFree(port: number, host: string): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, host, () => server.close(() => resolve(true)));
  });
}

/** `wanted`, or the next free port above it; 0 is any. */
export async function freePort(wanted = 0, host = "127.0.0.1"): Promise<number> {
  if (wanted === 0) {
    return new Promise((resolve, reject) => {
      const server = createServer();
      server.once("error", reject);
      server.listen(0, host, () => {
        const address = server.address();
        server.close(() =>
          address && typeof address === "object" ? resolve(address.port) : reject(new Error("no port")),
        );
      });
    });
  }
  for (let port = wanted; port < Math.min(wanted + 100, 65_536); port++) if (await isFree(port, host)) return port;
  throw new Error(`no free port from ${wanted} on`);
}
