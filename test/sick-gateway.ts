/** A gateway that speaks the sandbox's protocol and misbehaves on command: what real ones did on their worst days. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export type Kind = "charge" | "lookUp" | "cancel" | "refund" | "list";

export interface Charge {
  id: string;
  reference: string;
  reservationId: string;
  status: string;
  amount: number;
  currency: string;
  declineCode?: string;
  actionUrl?: string;
}

/** What a call answers instead of the truth. A body that is a string is sent as it is; "silence" never answers. */
export type Odd = { status: number; body: unknown; delayMs?: number } | "silence" | undefined;
/**
 * `n` counts the calls of this kind for this reference, from 1; `charge` is what is in the ledger once the call is
 * done.
 */
export type Behaviour = (o: { reference: string; n: number; charge: Charge | undefined }) => Odd;

export interface SickGateway {
  url: string;
  charges: Map<string, Charge>;
  calls: Array<{ kind: Kind; reference: string }>;
  inFlight(): number;
  inFlightMax(): number;
  /** Most calls of a kind that were in flight at once. */
  most(kind: Kind): number;
  count(kind: Kind): number;
  behave: Partial<Record<Kind, Behaviour>>;
  latencyMs: Partial<Record<Kind, number>>;
  /** A page is no longer than this, whatever was asked for. */
  pageMax: number;
  /** Records that another program left in the list, before ours. */
  foreign: unknown[];
  close(): Promise<void>;
}

const STATUS: Record<string, number> = {
  captured: 201,
  refunded: 201,
  declined: 402,
  action_required: 202,
  pending: 409,
  canceled: 410,
};
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function bodyOf(request: IncomingMessage): Promise<Record<string, unknown>> {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text === "" ? {} : (JSON.parse(text) as Record<string, unknown>);
}

function kindOf(request: IncomingMessage): { kind: Kind; reference: string; query: URLSearchParams } {
  const url = new URL(request.url as string, "http://gateway");
  const [, , reference = "", verb = ""] = url.pathname.split("/");
  const of = { reference: decodeURIComponent(reference), query: url.searchParams };
  if (request.method === "GET") return { kind: reference === "" ? "list" : "lookUp", ...of };
  return { kind: verb === "cancel" ? "cancel" : verb === "refund" ? "refund" : "charge", ...of };
}

/** The truth, kept also where something else is answered. */
function decide(
  charges: Map<string, Charge>,
  kind: Kind,
  reference: string,
  body: Record<string, unknown>,
): Charge | undefined {
  const before = charges.get(reference);
  if (kind === "charge" && !before) {
    const { token, amount, currency, reservationId } = body as Record<string, string>;
    const status = token === "tok_declined" ? "declined" : token === "tok_3ds" ? "action_required" : "captured";
    charges.set(reference, {
      id: `ch_${reference}`,
      reference,
      reservationId: String(reservationId ?? ""),
      status,
      amount: Number(amount),
      currency: String(currency),
      ...(status === "action_required" && { actionUrl: `http://bank.invalid/${reference}` }),
    });
  }
  if (kind === "refund" && before?.status === "captured") before.status = "refunded";
  if (kind === "cancel" && before?.status !== "captured" && before?.status !== "refunded")
    charges.set(reference, {
      ...(before ?? { id: "", reference, reservationId: "", amount: 0, currency: "" }),
      status: "canceled",
    });
  return charges.get(reference);
}

export async function startSickGateway(): Promise<SickGateway> {
  const charges = new Map<string, Charge>();
  const calls: SickGateway["calls"] = [];
  const now = new Map<Kind, number>();
  const most = new Map<Kind, number>();
  let [inFlight, inFlightMax] = [0, 0];

  function listed(query: URLSearchParams): { charges: unknown[]; next: string | null } {
    const all = [...sick.foreign, ...charges.values()];
    const from = Number(query.get("after") ?? 0);
    const to = from + Math.min(Number(query.get("limit") ?? 100), sick.pageMax);
    return { charges: all.slice(from, to), next: to < all.length ? String(to) : null };
  }

  const running = new Map<ServerResponse, Kind>();
  /** Over when it is answered, or when nobody listens any more. */
  function ended(response: ServerResponse): void {
    const kind = running.get(response);
    if (!running.delete(response) || kind === undefined) return;
    inFlight--;
    now.set(kind, (now.get(kind) ?? 1) - 1);
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const asked = kindOf(request);
    const { kind, query } = asked;
    const body = await bodyOf(request);
    const reference = kind === "charge" ? String(body.reference) : asked.reference;
    calls.push({ kind, reference });
    const n = calls.filter((c) => c.kind === kind && c.reference === reference).length;
    // Who refuses does nothing; what it would have done is not in the ledger then.
    const before = charges.get(reference) && { ...(charges.get(reference) as Charge) };
    const odd = sick.behave[kind]?.({ reference, n, charge: before });
    await pause((odd !== "silence" && odd?.delayMs) || (sick.latencyMs[kind] ?? 0));
    if (odd === "silence") return;
    const send = (status: number, content: unknown) => {
      ended(response);
      response.writeHead(status, { "content-type": "application/json" });
      response.end(typeof content === "string" ? content : JSON.stringify(content));
    };
    if (odd) return send(odd.status, odd.body);
    if (kind === "list") return send(200, listed(query));
    const charge = decide(charges, kind, reference, body);
    if (!charge) return send(404, { error: "never heard of it" });
    send(kind === "lookUp" ? 200 : (STATUS[charge.status] ?? 200), charge);
  }

  const server = createServer((request, response) => {
    const { kind } = kindOf(request);
    inFlightMax = Math.max(inFlightMax, ++inFlight);
    now.set(kind, (now.get(kind) ?? 0) + 1);
    most.set(kind, Math.max(most.get(kind) ?? 0, now.get(kind) ?? 0));
    running.set(response, kind);
    response.once("close", () => ended(response));
    answer(request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const sick: SickGateway = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    charges,
    calls,
    inFlight: () => inFlight,
    inFlightMax: () => inFlightMax,
    most: (kind) => most.get(kind) ?? 0,
    count: (kind) => calls.filter((c) => c.kind === kind).length,
    behave: {},
    latencyMs: {},
    pageMax: 500,
    foreign: [],
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return sick;
}
