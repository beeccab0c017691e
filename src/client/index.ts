/**
 * The typed client, `import { makeClient } from "fukubukuro/client"`: for browsers and Node, depends on nothing.
 *
 * Every call may be repeated: a lost answer, a time-out, 429 and 5xx are tried again with the same key until
 * `giveUpMs`, no sooner than `Retry-After` says. A refusal (409, 403, 410, 402, 422) is an answer: it is thrown as a
 * `FukubukuroError` with its `code`.
 */

export interface Sale {
  id: string;
  name: string;
  status: "scheduled" | "open" | "paused" | "closed";
  opensAt: string;
  closesAt: string;
  serverTime: string;
  currency: string;
  holdMs: number;
  maxUnitsPerCustomer: number;
  gateways: string[];
  /** Minor units, as every amount; tax included. */
  shippingFee: number;
  items: Array<{
    sku: string;
    name: string;
    unitPrice: number;
    availability: "available" | "all_held" | "sold_out";
    free: number;
  }>;
  nextReleaseAt: string | null;
}

export interface Line {
  sku: string;
  quantity: number;
}

export interface Reservation {
  id: string;
  saleId: string;
  status: "held" | "paying" | "confirmed" | "released" | "expired";
  lines: Array<Line & { unitPrice: number }>;
  amount: number;
  currency: string;
  /** Absent while paying: no shopper loses a bag because the shop made them wait. */
  expiresAt?: string | undefined;
  serverTime: string;
  payment?:
    | {
        id: string;
        /**
         * queued, sending, action_required, unknown; declined while held. Unknown is not failed: it is being looked up.
         */
        status: string;
        /** Place in the line, from 1, while queued. */
        position?: number | undefined;
        etaMs?: number | undefined;
        /** Where the shopper has to go (3-D Secure). */
        actionUrl?: string | undefined;
        declineCode?: string | undefined;
      }
    | undefined;
  orderId?: string | undefined;
  /** The order's row is written. */
  recorded?: boolean | undefined;
}

export interface Contact {
  email: string;
  name: string;
  phone?: string | undefined;
}
export interface ShipTo {
  postalCode?: string | undefined;
  address?: string | undefined;
}

export interface ConfirmRequest {
  /** The token is what the gateway's browser library gave; `cod` needs none. */
  payment: { gateway?: string | undefined; token?: string | undefined };
  contact: Contact;
  shipTo?: ShipTo | undefined;
  /** Where an approval page sends the shopper back to. */
  returnUrl?: string | undefined;
}

export interface Order {
  id: string;
  reservationId: string;
  saleId: string;
  customerId: string;
  status: "confirmed" | "refunding" | "refunded";
  lines: Array<Line & { unitPrice: number; name: string }>;
  amount: number;
  currency: string;
  payment: { gateway: string; reference: string; chargeId: string | null };
  contact: Contact;
  shipTo: ShipTo | null;
  confirmedAt: string;
  recordedAt: string;
}

export interface ClientOptions {
  /** `https://stock.example`; "" is the page's own origin. */
  baseUrl?: string;
  /** The shopper's token, or what answers it; asked for at every try, so that a new one can take an old one's place. */
  token?: string | (() => string | Promise<string>);
  /** How long a call is tried again before it is given up, ms. Giving up means "not known", not "failed". */
  giveUpMs?: number;
  /** How long one try may take beside what it was asked to wait, ms. */
  timeoutMs?: number;
  /** Put first in what is sent as `Accept-Language`; mails follow it where the sale has no language of its own. */
  language?: string;
  fetch?: typeof fetch;
}

/**
 * A refusal by the service (`code` as in docs/reference.md), or `NO_ANSWER` when none came in time: then it is not
 * known what happened.
 */
export class FukubukuroError extends Error {
  readonly status: number;
  readonly code: string;
  readonly retryAfterMs: number | undefined;
  /** The whole problem body: `lines`, `nextReleaseAt`, `declineCode`, `reservation` and so on, by code. */
  readonly problem: Record<string, unknown>;

  constructor(
    status: number,
    code: string,
    detail: string,
    problem: Record<string, unknown> = {},
    retryAfterMs?: number,
  ) {
    super(detail);
    this.name = "FukubukuroError";
    this.status = status;
    this.code = code;
    this.problem = problem;
    this.retryAfterMs = retryAfterMs;
  }
}

interface Call {
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
  /** Time the answer was asked to wait, ms. */
  waitMs?: number;
  /** Instead of the client's own; 0 = one try. */
  giveUpMs?: number;
  /** What is tried again beside the states of overload. */
  again?: (error: FukubukuroError) => boolean;
}

const GIVE_UP_MS = 30_000;
const TIMEOUT_MS = 12_000;
const PAUSE_MS = 250;
const PAUSE_MS_MAX = 5_000;
const WAIT_S = 10;
/** A stream has a sign of life every 15 s; so many time limits without one, and it is dead though nobody said so. */
const SILENT_TIMEOUTS = 3;
const CLOCK_SAMPLES_MAX = 20;
const FINAL = new Set(["released", "expired"]);

/** Whether nothing more will happen to it. A confirmed one is final once its order is recorded. */
export const isFinal = (r: Reservation): boolean =>
  FINAL.has(r.status) || (r.status === "confirmed" && r.recorded === true);

export type Client = ReturnType<typeof makeClient>;

interface Following {
  signal?: AbortSignal;
}
interface WatchOptions extends Following {
  everyMs?: number;
  onTrouble?: (error: FukubukuroError) => void;
}

export function makeClient(options: ClientOptions = {}) {
  const wire = new Wire(options);
  return {
    /**
     * The service's clock as far as it is known: `now()` in ms since 1970. For countdowns; the service decides by its
     * own.
     */
    clock: { now: wire.clock.now },

    /** The sale with live availability, at most 250 ms old (a second behind a cache). */
    async sale(saleId: string, o: { signal?: AbortSignal } = {}): Promise<Sale> {
      return (await wire.json<Sale>(salePath(saleId), o)).body;
    },

    /**
     * The sale now and then every `everyMs`, with some jitter, until the signal. A failure is waited out, and told to
     * `onTrouble`.
     */
    watch: (saleId: string, o?: WatchOptions): AsyncGenerator<Sale> => watch(wire, saleId, o),

    /**
     * All lines or none. Keep the idempotency key where a reload finds it: the same key is the same reservation,
     * however often it is sent.
     */
    async reserve(
      saleId: string,
      request: { lines: Line[]; idempotencyKey: string; signal?: AbortSignal },
    ): Promise<Reservation & { replayed: boolean }> {
      const { idempotencyKey, lines, signal } = request;
      const { body, response } = await wire.json<Reservation>(`${salePath(saleId)}/reservations`, {
        method: "POST",
        body: { lines },
        headers: { "idempotency-key": idempotencyKey },
        signal,
      });
      return { ...body, replayed: response.headers.get("idempotent-replay") === "true" };
    },

    /** The shopper's own reservations in a sale, newest first: the way back after a closed tab. */
    async reservations(saleId: string, o: { signal?: AbortSignal } = {}): Promise<Reservation[]> {
      return (await wire.json<{ reservations: Reservation[] }>(`${salePath(saleId)}/reservations`, o)).body
        .reservations;
    },

    async reservation(id: string, o: { signal?: AbortSignal } = {}): Promise<Reservation> {
      return (await wire.json<Reservation>(reservationPath(id), o)).body;
    },

    /**
     * The reservation as it changes, from its present state until a final one; reconnects by itself. Throws HOLD_LOST
     * when a Redis failure took it.
     */
    events: (id: string, o?: Following): AsyncGenerator<Reservation> => events(wire, id, o),

    /** Gives a hold back; again is the same. */
    async release(id: string, o: { signal?: AbortSignal } = {}): Promise<Reservation> {
      return (await wire.json<Reservation>(reservationPath(id), { ...o, method: "DELETE" })).body;
    },

    confirm: (id: string, request: ConfirmRequest, o?: Following & { waitS?: number }): Promise<Reservation> =>
      confirm(wire, id, request, o),

    /**
     * Pays and follows the payment: answers once it is `confirmed`, needs the shopper (`payment.status` is
     * `action_required`), or is `held` again after too long a line. Throws PAYMENT_DECLINED. Repeating it joins the
     * payment that is there. `onChange` hears of each state on the way, with the place in the line.
     */
    confirmAndWait: (id: string, request: ConfirmRequest, o?: Following & { onChange?: (r: Reservation) => void }) =>
      confirmAndWait(wire, id, request, o),

    /** The recorded order; waits while it is being written. */
    async order(orderId: string, o: { signal?: AbortSignal } = {}): Promise<Order> {
      const again = (e: FukubukuroError) => e.status === 404 && e.retryAfterMs !== undefined;
      return (await wire.json<Order>(`/v1/orders/${encodeURIComponent(orderId)}`, { ...o, again })).body;
    },
  };
}

/** How a call goes out and is tried again, for the functions below. */
class Wire {
  private readonly baseUrl: string;
  private readonly giveUpMs: number;
  private readonly send: (input: string, init?: RequestInit) => Promise<Response>;
  readonly timeoutMs: number;
  readonly clock = makeClock();

  constructor(private readonly options: ClientOptions) {
    this.baseUrl = (options.baseUrl ?? "").replace(/\/$/, "");
    this.giveUpMs = options.giveUpMs ?? GIVE_UP_MS;
    this.timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    const { fetch: given } = options;
    // A browser's own fetch is called as a function, not as a method of something else, or it refuses.
    this.send = (input, init) => (given ?? fetch)(input, init);
  }

  private async headersOf(call: Call): Promise<Record<string, string>> {
    const { token: given, language } = this.options;
    const token = typeof given === "function" ? await given() : given;
    return {
      accept: "application/json",
      ...(language && { "accept-language": language }),
      ...(token && { authorization: `Bearer ${token}` }),
      ...(call.body !== undefined && { "content-type": "application/json" }),
      ...call.headers,
    };
  }

  private async once(path: string, call: Call, signal: AbortSignal): Promise<Response> {
    const response = await this.send(this.baseUrl + path, {
      method: call.method ?? "GET",
      headers: await this.headersOf(call),
      ...(call.body !== undefined && { body: JSON.stringify(call.body) }),
      // Asks whether there is something newer, and is answered without a body where there is not.
      cache: "no-cache",
      signal,
    } as RequestInit);
    if (!response.ok) throw await refusalOf(response);
    return response;
  }

  async json<T>(path: string, call: Call = {}): Promise<{ body: T; response: Response }> {
    const endMs = performance.now() + (call.giveUpMs ?? this.giveUpMs);
    for (let tries = 1; ; tries++) {
      const stop = new AbortController();
      const leave = stopWith(stop, call.signal);
      const late = () => stop.abort(new DOMException("no answer in time", "TimeoutError"));
      const timer = setTimeout(late, this.timeoutMs + (call.waitMs ?? 0));
      try {
        const response = await this.once(path, call, stop.signal);
        const body = (await response.json()) as T;
        const { serverTime } = body as { serverTime?: string };
        if (serverTime !== undefined) this.clock.heard(serverTime);
        return { body, response };
      } catch (thrown) {
        call.signal?.throwIfAborted();
        const error =
          thrown instanceof FukubukuroError
            ? thrown
            : new FukubukuroError(0, "NO_ANSWER", `no answer: ${String(thrown)}`);
        const pauseMs = pauseOf(error, tries);
        if (!(isPassing(error) || call.again?.(error)) || performance.now() + pauseMs > endMs) throw error;
        await pause(pauseMs, call.signal);
      } finally {
        clearTimeout(timer);
        leave();
      }
    }
  }

  /** A stream of server-sent events, as it begins. */
  async stream(path: string, signal: AbortSignal): Promise<ReadableStream<Uint8Array>> {
    const response = await this.send(this.baseUrl + path, {
      headers: { ...(await this.headersOf({})), accept: "text/event-stream" },
      signal,
    });
    if (!response.ok || !response.body) throw await refusalOf(response);
    return response.body;
  }
}

const reservationPath = (id: string) => `/v1/reservations/${encodeURIComponent(id)}`;
const salePath = (id: string) => `/v1/sales/${encodeURIComponent(id)}`;

async function* watch(wire: Wire, saleId: string, o: WatchOptions = {}): AsyncGenerator<Sale> {
  const everyMs = o.everyMs ?? 1_000;
  while (!o.signal?.aborted) {
    let waitMs = everyMs * (0.8 + Math.random() * 0.2);
    try {
      yield (await wire.json<Sale>(salePath(saleId), { signal: o.signal, giveUpMs: 0 })).body;
    } catch (error) {
      if (o.signal?.aborted) return;
      if (!(error instanceof FukubukuroError) || error.code === "NOT_FOUND") throw error;
      o.onTrouble?.(error);
      waitMs = Math.max(waitMs, error.retryAfterMs ?? 0);
    }
    await pause(waitMs, o.signal).catch(() => {});
  }
}

async function* events(wire: Wire, id: string, o: { signal?: AbortSignal } = {}): AsyncGenerator<Reservation> {
  for (let tries = 1; !o.signal?.aborted; tries++) {
    const silent = new AbortController();
    const leave = stopWith(silent, o.signal);
    const giveUp = () => silent.abort(new Error("the stream fell silent"));
    let timer = setTimeout(giveUp, wire.timeoutMs);
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(giveUp, wire.timeoutMs * SILENT_TIMEOUTS);
    };
    try {
      const body = await wire.stream(`${reservationPath(id)}/events`, silent.signal);
      for await (const data of dataOf(body, alive)) {
        const reservation = JSON.parse(data) as Reservation;
        wire.clock.heard(reservation.serverTime);
        tries = 0;
        yield reservation;
        if (isFinal(reservation)) return;
      }
    } catch (error) {
      if (o.signal?.aborted) return;
      if (error instanceof FukubukuroError && !isPassing(error)) throw error;
    } finally {
      clearTimeout(timer);
      leave();
    }
    await pause(pauseOf(null, tries + 1), o.signal).catch(() => {});
  }
}

async function confirmAndWait(
  wire: Wire,
  id: string,
  request: ConfirmRequest,
  o: { signal?: AbortSignal; onChange?: (r: Reservation) => void } = {},
): Promise<Reservation> {
  const first = await confirm(wire, id, request, { ...o, waitS: 0 });
  o.onChange?.(first);
  if (first.status === "confirmed" || first.payment?.status === "action_required") return first;
  const stop = new AbortController();
  const leave = stopWith(stop, o.signal);
  try {
    for await (const r of events(wire, id, { signal: stop.signal })) {
      o.onChange?.(r);
      if (r.payment?.status === "declined") throw declinedOf(r);
      if (r.status !== "paying" || r.payment?.status === "action_required") return r;
    }
  } finally {
    stop.abort();
    leave();
  }
  o.signal?.throwIfAborted();
  return confirm(wire, id, request, o);
}

async function confirm(
  wire: Wire,
  id: string,
  request: ConfirmRequest,
  o: { signal?: AbortSignal; waitS?: number } = {},
): Promise<Reservation> {
  const waitS = o.waitS ?? WAIT_S;
  const headers: Record<string, string> = waitS > 0 ? { prefer: `wait=${waitS}` } : {};
  return (
    await wire.json<Reservation>(`${reservationPath(id)}/pay`, {
      method: "POST",
      body: request,
      headers,
      waitMs: waitS * 1000,
      signal: o.signal,
    })
  ).body;
}

/** Not an answer to what was asked: the same again, later. */
const isPassing = (e: FukubukuroError) => e.status === 0 || e.status === 429 || e.status >= 500;

/** As long as the service says, else longer each time; never all clients at once. */
function pauseOf(error: FukubukuroError | null, tries: number): number {
  if (error?.retryAfterMs !== undefined) return error.retryAfterMs;
  return Math.min(PAUSE_MS * 2 ** (tries - 1), PAUSE_MS_MAX) * (0.5 + Math.random() * 0.5);
}

/**
 * Our own stop follows the caller's signal until we leave: that one may live for days, and `AbortSignal.any` would
 * leave a trace on it each time.
 */
function stopWith(own: AbortController, theirs: AbortSignal | undefined): () => void {
  if (!theirs) return () => {};
  const stop = () => own.abort(theirs.reason);
  theirs.addEventListener("abort", stop);
  if (theirs.aborted) stop();
  return () => theirs.removeEventListener("abort", stop);
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

async function refusalOf(response: Response): Promise<FukubukuroError> {
  const problem = (await response.json().catch(() => ({}))) as {
    code?: string;
    detail?: string;
    retryAfterMs?: number;
  };
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  const retryAfterMs = problem.retryAfterMs ?? (Number.isFinite(seconds) ? seconds * 1000 : undefined);
  const detail = problem.detail ?? `the answer was ${response.status}`;
  return new FukubukuroError(
    response.status,
    problem.code ?? "UNREADABLE_ANSWER",
    detail,
    problem as Record<string, unknown>,
    retryAfterMs,
  );
}

function declinedOf(r: Reservation): FukubukuroError {
  const declineCode = r.payment?.declineCode ?? "declined";
  return new FukubukuroError(402, "PAYMENT_DECLINED", `the payment was declined (${declineCode})`, {
    declineCode,
    reservation: r,
  });
}

/** The `data:` of each server-sent event; `alive` hears of everything that comes, comments too. */
async function* dataOf(body: ReadableStream<Uint8Array>, alive: () => void): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      text += decoder.decode(value, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop() ?? "";
      for (const part of parts) {
        const data = part.split("\n").flatMap((l) => (l.startsWith("data:") ? [l.slice(5).trimStart()] : []));
        if (data.length > 0) yield data.join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/**
 * An answer was on its way for some time, so each says that the service's clock is at least that far ahead of ours: the
 * furthest of the latest ones is the nearest to the truth. By our monotonic clock, which nobody sets.
 */
function makeClock() {
  let aheads: number[] = [];
  return {
    heard(serverTime: string): void {
      const ahead = Date.parse(serverTime) - performance.now();
      if (Number.isFinite(ahead)) aheads = [ahead, ...aheads].slice(0, CLOCK_SAMPLES_MAX);
    },
    now: (): number => (aheads.length > 0 ? performance.now() + Math.max(...aheads) : Date.now()),
  };
}
