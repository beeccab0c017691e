/**
 * Answers a second, of all processes of this node: read from the text of /metrics, the one place where their figures
 * are added up already.
 */
import type { Metrics } from "../metrics.ts";

export interface Rates {
  requests: number;
  /** Reservations granted. */
  granted: number;
  /** Reserve answered with a refusal: sold out, held, not open, limit, too many. */
  refused: number;
  /** 503, of any route. */
  shed: number;
  /** Any other 5xx. */
  failed: number;
}

const RESERVE_ROUTE = "/v1/sales/{saleId}/reservations";
const COUNTED = /^fukubukuro_http_requests_total\{route="([^"]*)",status="(\d+)"\} (\d+)/gm;

/** Counts since the start. */
function countsOf(text: string): Rates {
  const sum: Rates = { requests: 0, granted: 0, refused: 0, shed: 0, failed: 0 };
  for (const [, route, status, n] of text.matchAll(COUNTED)) {
    const count = Number(n);
    sum.requests += count;
    if (status === "503") sum.shed += count;
    else if (status?.startsWith("5")) sum.failed += count;
    if (route !== RESERVE_ROUTE) continue;
    if (status === "201") sum.granted += count;
    if (status === "403" || status === "409" || status === "429") sum.refused += count;
  }
  return sum;
}

/** What came in between; a count that is lower than before began again with its process. */
function ratesOf(before: Rates, now: Rates, seconds: number): Rates {
  const rate = (name: keyof Rates) =>
    Math.round((now[name] < before[name] ? now[name] : now[name] - before[name]) / seconds);
  return {
    requests: rate("requests"),
    granted: rate("granted"),
    refused: rate("refused"),
    shed: rate("shed"),
    failed: rate("failed"),
  };
}

export function makeRequestRates(metrics: Pick<Metrics, "text">) {
  let counted: { at: number; counts: Rates } | null = null;
  return {
    /** Since the call before; the first one has nothing to compare with. */
    async read(): Promise<Rates> {
      const now = { at: performance.now(), counts: countsOf(await metrics.text()) };
      const before = counted ?? now;
      counted = now;
      return ratesOf(before.counts, now.counts, Math.max(0.001, (now.at - before.at) / 1000));
    },
    beginAnew(): void {
      counted = null;
    },
  };
}
