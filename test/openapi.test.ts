/**
 * The document is true: real answers of every route have the shapes that it names and no others, and so have its
 * examples.
 */
import { fileURLToPath } from "node:url";
import { lintFromString, loadConfig } from "@redocly/openapi-core";
import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { eq } from "drizzle-orm";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { payments } from "../src/stores/schema.ts";
import { ADMIN_TOKEN, CONTACT, makeWorld, type Running, saleBodyOf, shopper, until, type World } from "./support.ts";

type Json = Record<string, unknown>;
interface Content {
  schema: Json;
  example?: unknown;
}
interface Operation {
  operationId: string;
  summary: string;
  description: string;
  requestBody?: { content: Record<string, Content> };
  responses: Record<string, { description: string; content?: Record<string, Content> }>;
}
interface OpenApi {
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Json> };
}

let world: World;
let api: Running;
let document: OpenApi;
let operations: Array<{ method: string; path: string; operation: Operation }>;
beforeAll(async () => {
  world = await makeWorld();
  api = await world.start();
  document = (await (await fetch(`${api.url}/openapi.json`)).json()) as OpenApi;
  operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ method, path, operation })),
  );
  closeObjects(document);
  ajv.addSchema(document, "document");
});
afterAll(() => world.close());

const ajv = new Ajv2020({ strict: false, allErrors: true });
addFormats.default(ajv);

/** An answer has no field that its shape does not name. */
function closeObjects(node: unknown): void {
  if (typeof node !== "object" || node === null) return;
  const schema = node as Json;
  if (schema.properties && schema.type !== undefined && schema.additionalProperties === undefined)
    schema.additionalProperties = false;
  for (const part of Object.values(schema)) closeObjects(part);
}

const pointer = (...parts: string[]) =>
  `document#/${parts.map((p) => encodeURIComponent(p.replaceAll("~", "~0").replaceAll("/", "~1"))).join("/")}`;

/** What is wrong with a value by a shape of the document. */
function faultsOf(value: unknown, ...at: string[]): string[] {
  const validate = ajv.compile({ $ref: pointer(...at) });
  return validate(value)
    ? []
    : (validate.errors ?? []).map((e) => `${at.join(" ")}${e.instancePath}: ${ajv.errorsText([e])}`);
}

const seen = new Set<string>();

/** Holds an answer to what the document says of this route and status. */
function checkAnswer(method: string, path: string, status: number, type: string, body: unknown): void {
  const found = operations.find(
    (o) => o.method === method && new RegExp(`^${o.path.replace(/\{\w+\}/g, "[^/]+")}$`).test(path),
  );
  expect(found, `${method} ${path} is in the document`).toBeDefined();
  if (!found) return;
  const response = found.operation.responses[status];
  expect(response, `${found.operation.operationId} may answer ${status}`).toBeDefined();
  const at = ["paths", found.path, method, "responses", String(status), "content", type, "schema"];
  expect(response?.content?.[type], `${found.operation.operationId} ${status} may be ${type}`).toBeDefined();
  expect(faultsOf(body, ...at)).toEqual([]);
  seen.add(`${found.operation.operationId} ${status}`);
}

async function ask(method: string, path: string, headers: Record<string, string> = {}, body?: unknown) {
  const response = await fetch(`${api.url}${path}`, {
    method: method.toUpperCase(),
    headers: { ...headers, ...(body !== undefined && { "content-type": "application/json" }) },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  const type = (response.headers.get("content-type") ?? "").split(";")[0] as string;
  const text = await response.text();
  const value = type.endsWith("json") ? (JSON.parse(text) as Json) : text;
  checkAnswer(method, path.split("?")[0] as string, response.status, type, value);
  return { status: response.status, body: value as Json };
}

/** The data of the first events, until each of the names was heard. */
async function hear(path: string, headers: Record<string, string>, names: string[]): Promise<void> {
  const stop = new AbortController();
  const response = await fetch(`${api.url}${path}`, { headers, signal: stop.signal });
  const missing = new Set(names);
  let text = "";
  for await (const part of (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
    text += part;
    for (const [, name = "", data = ""] of text.matchAll(/event: (\w+)\ndata: (.*)\n/g)) {
      checkAnswer("get", path, response.status, "text/event-stream", JSON.parse(data));
      missing.delete(name);
    }
    text = text.slice(text.lastIndexOf("\n\n") + 2);
    if (missing.size === 0) break;
  }
  stop.abort();
  expect([...missing]).toEqual([]);
}

const operator = { authorization: `Bearer ${ADMIN_TOKEN}` };

describe("every operation of the document", () => {
  it("has an id of its own, a description, and examples that have the shapes they stand for", () => {
    expect(new Set(operations.map((o) => o.operation.operationId)).size).toBe(operations.length);
    for (const { method, path, operation } of operations) {
      expect(operation.operationId, path).toMatch(/^[a-z][A-Za-z]+$/);
      expect(operation.description, path).toBeTruthy();
      const at = ["paths", path, method];
      for (const [type, { example }] of Object.entries(operation.requestBody?.content ?? {})) {
        expect(example, `${operation.operationId} body`).toBeDefined();
        expect(faultsOf(example, ...at, "requestBody", "content", type, "schema")).toEqual([]);
      }
      for (const [status, { content = {} }] of Object.entries(operation.responses))
        for (const [type, { example }] of Object.entries(content)) {
          expect(example, `${operation.operationId} ${status}`).toBeDefined();
          expect(faultsOf(example, ...at, "responses", status, "content", type, "schema")).toEqual([]);
        }
    }
  });

  it("keeps the rules of redocly.yaml", async () => {
    const config = await loadConfig({ configPath: fileURLToPath(new URL("../redocly.yaml", import.meta.url)) });
    const source = await (await fetch(`${api.url}/openapi.json`)).text();
    const problems = await lintFromString({ source, absoluteRef: "openapi.json", config });
    expect(problems.map((p) => `${p.ruleId} ${p.location[0]?.pointer ?? ""}: ${p.message}`)).toEqual([]);
  });

  it("would notice a field that the document does not name, and one that is missing", () => {
    const at = ["paths", "/healthz", "get", "responses", "200", "content", "application/json", "schema"];
    expect(faultsOf({ status: "ok" }, ...at)).toEqual([]);
    expect(faultsOf({ status: "ok", more: 1 }, ...at)).toHaveLength(1);
    expect(faultsOf({}, ...at)).toHaveLength(1);
  });
});

describe("real answers have the shapes of the document", () => {
  const shop = {
    shop: { name: { ja: "商店", en: "Shop" }, email: "shop@example.jp" },
    terms: { delivery: "soon" },
    language: "ja" as const,
  };
  const items = [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: 20, taxPercent: 8 }];

  it("to a shopper, from the sale to the order, refusals included", async () => {
    const sale = saleBodyOf({ ...shop, items });
    await ask("post", "/v1/admin/sales", operator, sale);
    const me = { authorization: shopper(api.url, "documented").authorization };
    await ask("get", `/v1/sales/${sale.id}`);
    await ask("get", "/v1/sales/none");
    const reserve = (key: string, quantity = 1) =>
      ask(
        "post",
        `/v1/sales/${sale.id}/reservations`,
        { ...me, "idempotency-key": key },
        { lines: [{ sku: "bag", quantity }] },
      );
    const { id } = (await reserve("one")).body;
    expect((await reserve("one")).status).toBe(200);
    expect((await reserve("two", 99)).body.code).toBe("LIMIT_REACHED");
    expect((await reserve("three", 0)).body.code).toBe("INVALID_REQUEST");
    await ask("get", `/v1/sales/${sale.id}/reservations`, me);
    await ask("get", `/v1/sales/${sale.id}/reservations`);
    const pay = (route: string, token: string, headers: Record<string, string> = {}) =>
      ask("post", `/v1/reservations/${id}/${route}`, { ...me, ...headers }, { payment: { token }, contact: CONTACT });
    expect((await pay("pay", "tok_declined", { prefer: "wait=20" })).body.code).toBe("PAYMENT_DECLINED");
    expect((await pay("pay", "tok_slow")).status).toBe(202);
    await pay("confirm", "tok_slow");
    await ask("delete", `/v1/reservations/${id}`, me);
    await hear(`/v1/reservations/${id}/events`, me, ["reservation"]);
    const last = await until("an end of the payment", async () => {
      const paid = await pay("pay", "tok_slow", { prefer: "wait=5" });
      return paid.status !== 202 && paid.status !== 503 && paid;
    });
    expect(last).toMatchObject({ status: 200, body: { status: "confirmed" } });
    expect((await pay("confirm", "tok_slow", { prefer: "wait=5" })).status).toBe(200);
    const { orderId } = (await ask("get", `/v1/reservations/${id}`, me)).body;
    await until("the order", async () => (await ask("get", `/v1/orders/${orderId}`, me)).status === 200);
    await ask("delete", `/v1/reservations/${id}`, me);
    const back = (await reserve("four")).body;
    expect((await ask("delete", `/v1/reservations/${back.id}`, me)).status).toBe(200);
  });

  it("to an operator, refusals included", async () => {
    const sale = saleBodyOf({ ...shop, items });
    const at = `/v1/admin/sales/${sale.id}`;
    await ask("post", "/v1/admin/sales", operator, sale);
    await ask("post", "/v1/admin/sales", operator, sale);
    await ask("post", "/v1/admin/sales", operator, { ...sale, name: "another" });
    await ask("get", "/v1/admin/sales", operator);
    await ask("get", at, operator);
    await ask("get", at);
    await ask("patch", at, operator, { extendHoldsMs: 1000, items: [{ sku: "bag", name: "Lucky bag" }] });
    const stock = (delta: number, key: string) =>
      ask("post", `${at}/items/bag/stock`, { ...operator, "idempotency-key": key }, { delta, reason: "test" });
    await stock(5, "one");
    await stock(5, "one");
    expect((await stock(-1000, "two")).body.code).toBe("BELOW_COMMITTED");
    const s = shopper(api.url, "bought");
    const { id } = (await s.reserve(sale.id, "k")).body;
    const { orderId } = (await s.confirm(id, { gateway: "cod" })).body;
    await until("the order", async () => (await s.read(id)).body.recorded);
    await ask("get", `/v1/admin/orders?saleId=${sale.id}`, operator);
    await ask("get", `/v1/admin/orders?saleId=${sale.id}&format=csv`, operator);
    const [order] = (await ask("get", `/v1/admin/orders?saleId=${sale.id}`, operator)).body.orders as Array<{
      payment: { reference: string };
    }>;
    const reference = order?.payment.reference ?? "";
    const decide = () =>
      ask("post", `/v1/admin/payments/${reference}/settle`, operator, { action: "accept", reason: "test" });
    expect((await decide()).body.code).toBe("NOT_SETTLEABLE");
    await api.service.ctx.db.update(payments).set({ attention: "test" }).where(eq(payments.reference, reference));
    expect((await decide()).status).toBe(200);
    await ask("post", `/v1/admin/orders/${orderId}/mail`, operator, { reason: "test" });
    await ask("post", `/v1/admin/orders/${orderId}/refund`, operator, { reason: "test", restock: true });
    await ask("get", "/v1/admin/payments?limit=1", operator);
    await ask("get", `${at}/audit`, operator);
    await ask("get", `${at}/audit`, { ...operator, accept: "text/html" });
    await ask("post", `${at}/reconcile`, operator);
    await ask("get", "/v1/admin/log", operator);
    await hear("/v1/admin/events", operator, ["history", "figures", "books"]);
  });

  it("and nothing that an operation may answer is left out", async () => {
    await ask("get", "/healthz");
    expect((await ask("get", "/readyz")).body).toEqual({ status: "ready" });
    const told = operations.flatMap(({ operation }) =>
      Object.entries(operation.responses)
        .filter(([status, r]) => Number(status) < 300 && r.content)
        .map(([status]) => `${operation.operationId} ${status}`),
    );
    // Its 202 is the other name's: both are one handler (test/contract.test.ts).
    const missing = told.filter((t) => !seen.has(t) && t !== "confirmReservation 202");
    expect(missing).toEqual([]);
  });
});
