/** The sandbox gateway (src/local/sandbox-gateway.ts), or any other program that speaks its HTTP interface. */
import { z } from "zod";
import { type Gateway, type GatewayAnswer, ListUnread } from "./port.ts";

const charge = z.object({
  id: z.string().default(""),
  reference: z.string(),
  reservationId: z.string().default(""),
  status: z.enum(["captured", "declined", "action_required", "pending", "canceled", "refunded"]),
  amount: z.number().int().default(0),
  currency: z.string().default(""),
  declineCode: z.string().optional(),
  actionUrl: z.string().optional(),
});
/** Of a list each record stands alone: one that is odd, of another program's perhaps, must not hide the others. */
const listed = z.object({
  id: z.string().default(""),
  reference: z.string(),
  reservationId: z.string().default(""),
  status: z.string(),
  amount: z.number().default(0),
  currency: z.string().default(""),
});
const page = z.object({ charges: z.array(z.unknown()), next: z.string().nullish() });

/** The socket never reached the gateway, so nothing was done there. A reset is not among these: it is unknown. */
const NEVER_REACHED = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** What is wrong with an answer, for the person who has to look. */
function wordsFor(body: unknown, reference: string): string {
  const { reference: named, status } = (body ?? {}) as { reference?: unknown; status?: unknown };
  if (typeof named === "string" && named !== reference)
    return `another reference, ${JSON.stringify(named.slice(0, 64))}`;
  if (typeof status === "string") return `the status ${JSON.stringify(status.slice(0, 64))}`;
  return "something that cannot be read";
}

export function sandboxGateway(baseUrl: string, timeoutMs: number): Gateway {
  const url = (path: string) => new URL(path, baseUrl.endsWith("/") ? baseUrl : `${baseUrl}/`);

  async function call(
    method: string,
    path: string,
    key?: string,
    body?: unknown,
  ): Promise<{ status: number; body: unknown } | GatewayAnswer> {
    try {
      const response = await fetch(url(path), {
        method,
        redirect: "manual",
        signal: AbortSignal.timeout(timeoutMs),
        headers: {
          ...(key && { "idempotency-key": key }),
          ...(body !== undefined && { "content-type": "application/json" }),
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
      const text = await response.text();
      let parsed: unknown = null;
      try {
        parsed = JSON.parse(text);
      } catch {
        // No JSON: a proxy's page, or nothing. What it says is read from the status alone.
      }
      return { status: response.status, body: parsed };
    } catch (error) {
      const cause = (error as { cause?: { code?: string } }).cause;
      const code = cause?.code ?? (error instanceof Error ? error.name : "error");
      return NEVER_REACHED.has(code)
        ? { outcome: "not_done", why: `the gateway cannot be reached (${code})` }
        : { outcome: "unknown", why: code, answered: false };
    }
  }

  function read(reply: { status: number; body: unknown } | GatewayAnswer, reference: string): GatewayAnswer {
    if ("outcome" in reply) return reply;
    const { status } = reply;
    if (status === 404) return { outcome: "not_found" };
    if (status === 429) return { outcome: "not_done", why: "the gateway is at its limit" };
    const parsed = charge.safeParse(reply.body);
    if (status >= 500 || !parsed.success || parsed.data.reference !== reference) {
      const why = `the gateway answered ${status} with ${wordsFor(reply.body, reference)}`;
      // 504 is a proxy's: behind it the call may go on.
      return { outcome: "unknown", why, answered: status !== 504 };
    }
    const c = parsed.data;
    switch (c.status) {
      case "captured":
        return { outcome: "captured", chargeId: c.id, amount: c.amount, currency: c.currency };
      case "declined":
        return { outcome: "declined", declineCode: c.declineCode ?? "declined", chargeId: c.id };
      case "action_required":
        return c.actionUrl
          ? { outcome: "action_required", actionUrl: c.actionUrl }
          : { outcome: "unknown", why: "no address for the shopper's approval", answered: true };
      case "canceled":
        return { outcome: "cancelled" };
      case "refunded":
        return { outcome: "refunded" };
      case "pending":
        return { outcome: "pending" };
    }
  }

  return {
    name: "sandbox",
    needsToken: true,
    needsPermits: true,
    charge: async (r) => {
      const { reference, reservationId, amount, currency, token, returnUrl } = r;
      return read(
        await call("POST", "charges", reference, { amount, currency, token, reference, reservationId, returnUrl }),
        reference,
      );
    },
    lookUp: async (reference) => read(await call("GET", `charges/${reference}`), reference),
    cancel: async (reference) => read(await call("POST", `charges/${reference}/cancel`), reference),
    refund: async (reference, amount) =>
      read(await call("POST", `charges/${reference}/refund`, `${reference}R`, { amount }), reference),
    async list(after, limit) {
      const reply = await call("GET", `charges?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
      if ("outcome" in reply) throw new ListUnread("the gateway's list did not come", reply.outcome === "not_done");
      const read = reply.status === 200 ? page.safeParse(reply.body) : null;
      if (!read?.success)
        throw new ListUnread(`the gateway answered ${reply.status} for its list`, reply.status !== 504);
      const { charges, next } = read.data;
      const readable = charges.flatMap((c) => listed.safeParse(c).data ?? []);
      return { charges: readable, next: next ?? null, odd: charges.length - readable.length };
    },
  };
}
