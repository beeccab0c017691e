/**
 * Many requests in little time: raw HTTP over a few connections, several under way on each. For tests of what many
 * requests leave behind.
 */
import { get, type IncomingMessage } from "node:http";
import { connect, type Socket } from "node:net";

export interface Asked {
  method?: string;
  path: string;
  headers?: Record<string, string>;
  body?: string;
}

function textOf(host: string, a: Asked): string {
  const headers = Object.entries(a.headers ?? {}).map(([name, value]) => `${name}: ${value}\r\n`);
  const length = a.body === undefined ? "" : `content-length: ${Buffer.byteLength(a.body)}\r\n`;
  return `${a.method ?? "GET"} ${a.path} HTTP/1.1\r\nhost: ${host}\r\n${headers.join("")}${length}\r\n${a.body ?? ""}`;
}

/** Where the answer that begins at 0 ends, or -1 when it has not come as a whole. */
function endOf(b: Buffer): number {
  const head = b.indexOf("\r\n\r\n");
  if (head < 0) return -1;
  const status = Number(b.toString("latin1", 9, 12));
  const headers = b.toString("latin1", 0, head).toLowerCase();
  if (status === 204 || status === 304) return head + 4;
  const length = /\r\ncontent-length: (\d+)/.exec(headers)?.[1];
  if (length !== undefined) return b.length >= head + 4 + Number(length) ? head + 4 + Number(length) : -1;
  if (!headers.includes("transfer-encoding: chunked")) throw new Error(`an answer without a length:\n${headers}`);
  let at = head + 4;
  for (;;) {
    const line = b.indexOf("\r\n", at);
    if (line < 0) return -1;
    const size = Number.parseInt(b.toString("latin1", at, line), 16);
    at = line + 2 + size + 2;
    if (at > b.length) return -1;
    if (size === 0) return at;
  }
}

/** Asks `n` times what `make` makes, and counts the answers by status. */
export async function askMany(
  url: string,
  n: number,
  make: (i: number) => Asked,
  o: { connections?: number; depth?: number } = {},
): Promise<Record<number, number>> {
  const { connections = 4, depth = 16 } = o;
  const at = new URL(url);
  const statuses: Record<number, number> = {};
  let next = 0;
  const one = () =>
    new Promise<void>((resolve, reject) => {
      const socket: Socket = connect(Number(at.port), at.hostname);
      let received: Buffer = Buffer.alloc(0);
      let open = 0;
      const send = () => {
        let text = "";
        for (; open < depth && next < n; open++) text += textOf(at.host, make(next++));
        if (text !== "") socket.write(text);
        if (open === 0) socket.end(resolve);
      };
      socket.on("error", reject);
      socket.on("close", () => open > 0 && reject(new Error("the connection was closed under an answer")));
      socket.on("data", (chunk: Buffer) => {
        received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
        for (let end = endOf(received); end >= 0; end = endOf(received)) {
          const status = Number(received.toString("latin1", 9, 12));
          statuses[status] = (statuses[status] ?? 0) + 1;
          received = received.subarray(end);
          open--;
        }
        if (open <= depth / 2) send();
      });
      send();
    });
  await Promise.all(Array.from({ length: connections }, one));
  return statuses;
}

/** A stream of events, once its first bytes are here. */
export function openStream(url: string, { path, headers }: Asked): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const asked = get(new URL(path, url), { headers, agent: false }, (answer) => {
      answer.on("error", () => {}); // we leave in the middle
      answer.once("data", () => resolve(answer));
      answer.once("end", () => reject(new Error("the stream ended before it said anything")));
    });
    asked.on("error", reject);
  });
}

/** Reads the first bytes of a stream and goes away; answers its status. */
export async function openAndLeave(url: string, asked: Asked): Promise<number | undefined> {
  const answer = await openStream(url, asked);
  answer.destroy();
  return answer.statusCode;
}
