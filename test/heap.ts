/**
 * How much memory another node process keeps, by its inspector: the process needs no route and no line of its own for
 * it, only `--inspect=0` among its options, and to print where it listens (as node does on its standard error).
 */
import { randomBytes } from "node:crypto";
import { connect } from "node:net";

/** Environment of a process whose heap is to be read. */
export const withInspector = (...options: string[]) => ({ NODE_OPTIONS: ["--inspect=0", ...options].join(" ") });

const MB = 1_048_576;
const ANSWER_MS_MAX = 30_000;

export interface Kept {
  /** What is reachable from JavaScript, in MB. */
  heap: number;
  /** Buffers, in MB. */
  external: number;
  /** What the process has of the machine, in MB; not all of it is in use. */
  resident: number;
}

export interface Inspector {
  /** After collections, so that only what is reachable counts. */
  kept(): Promise<Kept>;
  close(): void;
}

/** The inspector of a process that printed `output` so far. */
export async function inspect(output: string): Promise<Inspector> {
  const url = /Debugger listening on (ws:\S+)/.exec(output)?.[1];
  if (!url) throw new Error("the process does not say where its inspector listens");
  const ask = await openWebSocket(new URL(url));
  const collect = () => ask("HeapProfiler.collectGarbage", {});
  return {
    async kept() {
      // What a first collection finalizes a second one frees.
      await collect();
      await collect();
      const expression = "process.memoryUsage()";
      const { result } = await ask("Runtime.evaluate", { expression, returnByValue: true });
      const { heapUsed, external, rss } = (result as { value: NodeJS.MemoryUsage }).value;
      return { heap: heapUsed / MB, external: external / MB, resident: rss / MB };
    },
    close: () => ask.close(),
  };
}

interface Ask {
  (method: string, params: Record<string, unknown>): Promise<Record<string, unknown>>;
  close(): void;
}

/** As much of the WebSocket protocol (RFC 6455) as one question at a time needs. */
async function openWebSocket(url: URL): Promise<Ask> {
  const socket = connect(Number(url.port), url.hostname);
  let received: Buffer = Buffer.alloc(0);
  let upgraded: () => void = () => {};
  let failed: (error: Error) => void = () => {};
  const waiting = new Map<number, (answer: Record<string, unknown>) => void>();
  const opened = new Promise<void>((resolve, reject) => {
    [upgraded, failed] = [resolve, reject];
  });
  opened.catch(() => {});
  let open = false;
  socket.on("error", (error) => failed(error));
  socket.on("data", (chunk: Buffer) => {
    received = Buffer.concat([received, chunk]);
    if (!open) {
      const end = received.indexOf("\r\n\r\n");
      if (end < 0) return;
      received = received.subarray(end + 4);
      open = true;
      upgraded();
    }
    for (let text = takeFrame(); text !== null; text = takeFrame()) {
      const { id, result, error } = JSON.parse(text) as { id?: number; result?: object; error?: object };
      if (id !== undefined) waiting.get(id)?.({ ...result, ...(error && { error }) });
    }
  });
  /** The text of the next frame that has come as a whole; the inspector sends each message in one. */
  function takeFrame(): string | null {
    if (received.length < 2) return null;
    const short = (received[1] as number) & 127;
    const head = short === 126 ? 4 : short === 127 ? 10 : 2;
    if (received.length < head) return null;
    const length =
      short === 126 ? received.readUInt16BE(2) : short === 127 ? Number(received.readBigUInt64BE(2)) : short;
    if (received.length < head + length) return null;
    const text = received.toString("utf8", head, head + length);
    received = received.subarray(head + length);
    return text;
  }
  const key = randomBytes(16).toString("base64");
  socket.write(
    `GET ${url.pathname} HTTP/1.1\r\nHost: ${url.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
  );
  await opened;
  let asked = 0;
  const ask = (method: string, params: Record<string, unknown>) =>
    new Promise<Record<string, unknown>>((resolve, reject) => {
      const id = ++asked;
      const timer = setTimeout(() => reject(new Error(`the inspector did not answer ${method}`)), ANSWER_MS_MAX);
      waiting.set(id, (answer) => {
        clearTimeout(timer);
        waiting.delete(id);
        resolve(answer);
      });
      socket.write(maskedFrame(JSON.stringify({ id, method, params })));
    });
  return Object.assign(ask, { close: () => void socket.destroy() });
}

/** A client's frames are masked; a mask of zeros leaves the text as it is. */
function maskedFrame(text: string): Buffer {
  const body = Buffer.from(text);
  if (body.length >= 65_536) throw new Error("too long a question");
  const head = body.length < 126 ? [0x81, 0x80 | body.length] : [0x81, 0xfe, body.length >> 8, body.length & 255];
  return Buffer.concat([Buffer.from([...head, 0, 0, 0, 0]), body]);
}

export const keptLine = (name: string, k: Kept): string =>
  `${name} ${k.heap.toFixed(1)} MB on the heap, ${k.external.toFixed(1)} MB outside, ${k.resident.toFixed(0)} MB resident`;
