import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export type Metrics = ReturnType<typeof makeMetrics>;

export function makeMetrics() {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: "fukubukuro_" });
  const registers = [registry];
  const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
  return {
    registry,
    /** What /metrics answers; with several processes the sum of all (commands/api-processes.ts). */
    text: () => registry.metrics(),
    requests: new Counter({
      name: "fukubukuro_http_requests_total",
      help: "Answers by route and status",
      labelNames: ["route", "status"],
      registers,
    }),
    requestSeconds: new Histogram({
      name: "fukubukuro_http_request_seconds",
      help: "Time to answer by route",
      labelNames: ["route"],
      buckets: seconds,
      registers,
    }),
    outcomes: new Counter({
      name: "fukubukuro_outcomes_total",
      help: "Outcomes of stages",
      labelNames: ["stage", "outcome"],
      registers,
    }),
    gatewayCalls: new Histogram({
      name: "fukubukuro_gateway_call_seconds",
      help: "Gateway calls by kind and answer",
      labelNames: ["gateway", "kind", "answer"],
      buckets: seconds,
      registers,
    }),
    persisted: new Counter({
      name: "fukubukuro_journal_entries_persisted_total",
      help: "Journal entries written to Postgres",
      registers,
    }),
    orders: new Counter({ name: "fukubukuro_orders_recorded_total", help: "Orders recorded", registers }),
    deadLetters: new Counter({ name: "fukubukuro_dead_letters_total", help: "Journal entries set aside", registers }),
    mails: new Counter({ name: "fukubukuro_mails_total", help: "Mails by result", labelNames: ["result"], registers }),
    rebuilds: new Counter({ name: "fukubukuro_rebuilds_total", help: "Rebuilds of a sale in Redis", registers }),
    units: new Gauge({
      name: "fukubukuro_units",
      help: "Units by sale, item and count",
      labelNames: ["sale", "sku", "count"],
      registers,
    }),
    books: new Gauge({
      name: "fukubukuro_books_ok",
      help: "1 when the last audit of the sale was ok",
      labelNames: ["sale"],
      registers,
    }),
    open: new Gauge({
      name: "fukubukuro_open",
      help: "Open work by sale: paying, unknown, journal_lag, refunding, attention, mails_queued",
      labelNames: ["sale", "kind"],
      registers,
    }),
    gateInFlight: new Gauge({
      name: "fukubukuro_gate_in_flight",
      help: "Permits out",
      labelNames: ["gateway"],
      registers,
    }),
    gatePermits: new Gauge({
      name: "fukubukuro_gate_permits",
      help: "Permits out by what they are for: charge, look, refund, list; kept = given up unanswered, until the lease ends",
      labelNames: ["gateway", "kind"],
      registers,
    }),
    breaker: new Gauge({
      name: "fukubukuro_gate_breaker_open",
      help: "1 while this worker waits for a gateway that gives no definite answers",
      labelNames: ["gateway"],
      registers,
    }),
    gateLine: new Gauge({ name: "fukubukuro_gate_line", help: "Payments in line", labelNames: ["gateway"], registers }),
  };
}
