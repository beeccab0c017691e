/**
 * One table of everything that can be refused: it makes the status, the body (RFC 9457), the OpenAPI answers and the
 * docs.
 */

export const PROBLEMS = {
  SOLD_OUT: { status: 409, title: "Sold out", retry: false },
  ALL_HELD: { status: 409, title: "All units are held; some may come back", retry: true },
  NOT_ENOUGH_FREE: { status: 409, title: "Fewer units are free than asked for", retry: false },
  LIMIT_REACHED: { status: 409, title: "The limit per customer is reached", retry: false },
  SALE_NOT_OPEN: { status: 403, title: "The sale has not opened yet", retry: true },
  SALE_PAUSED: { status: 403, title: "The sale is paused", retry: true },
  SALE_CLOSED: { status: 403, title: "The sale is closed", retry: false },
  NOT_FOUND: { status: 404, title: "Not found", retry: false },
  RESERVATION_EXPIRED: { status: 410, title: "The reservation's time is over", retry: false },
  RESERVATION_RELEASED: { status: 410, title: "The reservation was given back", retry: false },
  HOLD_LOST: { status: 410, title: "The reservation was lost; nothing was charged", retry: false },
  PAYMENT_DECLINED: { status: 402, title: "The payment was declined", retry: false },
  PAYMENT_IN_PROGRESS: { status: 409, title: "A payment is in progress", retry: false },
  ALREADY_CONFIRMED: { status: 409, title: "The reservation is already confirmed", retry: false },
  IDEMPOTENCY_MISMATCH: { status: 422, title: "The same idempotency key was used for something else", retry: false },
  INVALID_REQUEST: { status: 422, title: "The request is not valid", retry: false },
  INVALID_JSON: { status: 400, title: "The body is not JSON", retry: false },
  BODY_TOO_LARGE: { status: 413, title: "The body is too large", retry: false },
  UNSUPPORTED_MEDIA_TYPE: { status: 415, title: "The body must be application/json", retry: false },
  UNAUTHENTICATED: { status: 401, title: "A valid bearer token is needed", retry: false },
  RATE_LIMITED: { status: 429, title: "Too many requests of one customer", retry: true },
  OVERLOADED: { status: 503, title: "Too busy", retry: true },
  PAYMENT_LINE_FULL: { status: 503, title: "The line for payment is full; your reservation stands", retry: true },
  UNAVAILABLE: { status: 503, title: "Not available at the moment", retry: true },
  BELOW_COMMITTED: { status: 409, title: "More units are held or sold than would be left", retry: false },
  NOT_SETTLEABLE: { status: 409, title: "The payment's state leaves nothing to decide this way", retry: false },
  SALE_EXISTS: { status: 409, title: "Another sale has this id", retry: false },
  ADMIN_DISABLED: { status: 503, title: "ADMIN_TOKEN is not set", retry: false },
  INTERNAL_ERROR: { status: 500, title: "Something went wrong on our side", retry: false },
} as const;

export type ProblemCode = keyof typeof PROBLEMS;

export interface FieldError {
  /** Where the fault is, as in `lines[0].quantity`; "" for the whole body. */
  path: string;
  message: string;
}

/** Thrown where a request is refused; api.ts makes the answer of it. */
export class Problem extends Error {
  readonly code: ProblemCode;
  readonly more: Record<string, unknown>;
  readonly retryAfterMs: number | undefined;

  constructor(code: ProblemCode, detail?: string, more: Record<string, unknown> = {}, retryAfterMs?: number) {
    // A refusal is no fault: nobody reads its stack, and capturing one costs more than the whole of the refusal.
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    super(detail ?? PROBLEMS[code].title);
    Error.stackTraceLimit = limit;
    this.code = code;
    this.more = more;
    this.retryAfterMs = retryAfterMs ?? (PROBLEMS[code].retry ? 1000 : undefined);
  }
}

export const invalid = (errors: FieldError[]) =>
  new Problem(
    "INVALID_REQUEST",
    errors
      .map((e) => `${e.path || "body"}: ${e.message}`)
      .join("; ")
      .slice(0, 500),
    { errors: errors.slice(0, 20) },
  );

const JITTER = 0.25;

/**
 * Body, and headers beside its type, of a problem. `Retry-After` is in whole seconds, rounded up; `retryAfterMs` has
 * jitter, so that clients do not come back as one.
 */
export function problemAnswer(
  p: Problem,
  requestId: string,
): { status: number; body: Record<string, unknown>; headers: Record<string, string> } {
  const { status, title } = PROBLEMS[p.code];
  const body: Record<string, unknown> = {
    type: `urn:fukubukuro:problem:${p.code.toLowerCase()}`,
    title,
    status,
    code: p.code,
    detail: p.message,
    requestId,
    ...p.more,
  };
  const headers: Record<string, string> = {};
  if (p.retryAfterMs !== undefined) {
    const ms = Math.ceil(p.retryAfterMs * (1 + Math.random() * JITTER));
    body.retryAfterMs = ms;
    headers["retry-after"] = String(Math.max(1, Math.ceil(ms / 1000)));
  }
  if (status === 401) headers["www-authenticate"] = "Bearer";
  return { status, body, headers };
}
