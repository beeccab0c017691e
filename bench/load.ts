/** The load generator: autocannon, sending each request exactly once, at full speed or at a held rate. */
import autocannon from "autocannon";

export interface Measured {
  perSecond: number;
  p50: number;
  p99: number;
  statuses: Record<string, number>;
  /** Answers by status and tenth of a second since the first, when asked for. */
  timeline?: Array<Record<string, number>>;
  /** When the first answer came, ms since 1970. */
  firstAtMs: number;
}

export interface Request {
  method: "GET" | "POST";
  path: string;
  headers?: Record<string, string>;
  body?: string;
  /** For a request that needs what the one before it on its connection was answered. */
  setupRequest?: (request: Request, context: Record<string, string>) => Request;
  onResponse?: (status: number, body: string, context: Record<string, string>) => void;
}

/** So many requests are really sent: every connection the same number. */
export const sent = (amount: number, connections: number) =>
  Math.floor(amount / Math.min(connections, amount)) * Math.min(connections, amount);

export async function load(
  url: string,
  o: { amount: number; connections: number; rate?: number; timeline?: boolean },
  /** One request, or several that follow each other on one connection; `amount` counts them all. */
  request: (i: number) => Request | Request[],
): Promise<Measured> {
  const connections = Math.min(o.connections, o.amount);
  const each = [request(0)].flat().length;
  const perConnection = Math.floor(o.amount / each / connections) * each;
  const timeline: Array<Record<string, number>> = [];
  let connection = 0;
  // The generator first builds every request and ends on a full second; the clock runs from the first answer to the
  // last.
  let [firstAt, lastAt, firstAtMs] = [0, 0, 0];
  const result = await autocannon({
    url,
    connections,
    amount: perConnection * connections,
    timeout: 30,
    ...(o.rate && { overallRate: o.rate }),
    setupClient(client) {
      const from = connection++ * perConnection;
      client.setRequests(
        Array.from({ length: perConnection / each }, (_, i) => request(from / each + i)).flat() as autocannon.Request[],
      );
      client.on("response", (status: number) => {
        lastAt = performance.now();
        if (firstAt === 0) [firstAt, firstAtMs] = [lastAt, Date.now()];
        if (!o.timeline) return;
        const tenth = Math.floor((lastAt - firstAt) / 100);
        while (timeline.length <= tenth) timeline.push({});
        const at = timeline[tenth] as Record<string, number>;
        at[status] = (at[status] ?? 0) + 1;
      });
    },
  });
  const statuses = Object.fromEntries(
    Object.entries(result.statusCodeStats ?? {}).map(([status, s]) => [status, (s as { count: number }).count]),
  );
  return {
    perSecond: (perConnection * connections) / ((lastAt - firstAt) / 1000),
    p50: result.latency.p50,
    p99: result.latency.p99,
    statuses,
    firstAtMs,
    ...(o.timeline && { timeline }),
  };
}

export const median = (numbers: number[]): number =>
  [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;

/** The results must not be published: an answer was not the expected one, or the books do not balance. */
export class Wrong extends Error {}

export function expectStatuses(what: string, f: Pick<Measured, "statuses">, wanted: Record<string, number>): void {
  const [got, want] = [JSON.stringify(f.statuses), JSON.stringify(wanted)];
  if (got !== want) throw new Wrong(`${what}: answers were ${got}, expected ${want}`);
}
