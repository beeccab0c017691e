/** The sandbox gateway (src/local/sandbox-gateway.ts), or any other program that speaks its HTTP interface. */
import { z } from "zod";
import type { Gateway, GatewayAnswer } from "./port.ts";

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
const page = z.object({ charges: z.array(charge), next: z.string().nullable() });

/** The socket never reached the gateway, so nothing was done there. A reset is not among these: it is unknown. */
const NEVER_REACHED = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "UND_ERR_CONNECT_TIMEOUT",
]);

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
        redirect: "error",
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
        if (response.status < 400) return { outcome: "unknown", why: "the gateway's answer cannot be read" };
      }
      return { status: response.status, body: parsed };
    } catch (error) {
      const cause = (error as { cause?: { code?: string } }).cause;
      const code = cause?.code ?? (error instanceof Error ? error.name : "error");
      return NEVER_REACHED.has(code)
        ? { outcome: "not_done", why: `the gateway cannot be reached (${code})` }
        : { outcome: "unknown", why: code };
    }
  }

  function read(reply: { status: number; body: unknown } | GatewayAnswer, reference: string): GatewayAnswer {
    if ("outcome" in reply) return reply;
    const { status } = reply;
    if (status === 404) return { outcome: "not_found" };
    if (status === 410) return { outcome: "cancelled" };
    if (status === 429) return { outcome: "not_done", why: "the gateway is at its limit" };
    const parsed = charge.safeParse(reply.body);
    if (!parsed.success || parsed.data.reference !== reference) {
      return { outcome: "unknown", why: `the gateway answered ${status} with something that cannot be read` };
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
          : { outcome: "unknown", why: "no address for the shopper's approval" };
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
      if ("outcome" in reply || reply.status !== 200) throw new Error("the gateway's list cannot be read");
      return page.parse(reply.body);
    },
  };
}
