/**
 * Requests nobody would write, at every route of the service's own /openapi.json, several at a time so that good ones
 * travel with bad ones. Each answer must be one that the document names, and the service must go on selling.
 */
import { Agent, request as rawRequest } from "node:http";
import fc from "fast-check";
import { hostileBody, hostileText, type Schema, valuesOf } from "./hostile.ts";
import { ADMIN_TOKEN, call, makeWorld, operator, type Running, saleBodyOf, shopper, until } from "./support.ts";

const CUSTOMERS = ["ana", "ben", "太郎", "chi"];
const ANSWER_MS_MAX = 20_000;
/** 503 is for stores that are away and for too much at once; 500 is for nothing. */
const MAY_BE_503 = new Set(["UNAVAILABLE", "OVERLOADED", "ADMIN_DISABLED"]);

interface Operation {
  method: string;
  path: string;
  who: "anyone" | "shopper" | "admin";
  responses: Record<string, unknown>;
  query: Array<{ name: string; schema: Schema }>;
  params: string[];
  body: Schema | undefined;
}
interface Document {
  paths: Record<string, Record<string, Record<string, unknown>>>;
  components: { schemas: Record<string, Schema> };
}
type Parameter = { name: string; in: string; schema: Schema };

function operationsOf(document: Document): Operation[] {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, o]) => {
      const parameters = (o.parameters ?? []) as Parameter[];
      const content = (o.requestBody as { content: Record<string, { schema: Schema }> } | undefined)?.content;
      const security = (o.security ?? []) as Array<Record<string, unknown>>;
      return {
        method: method.toUpperCase(),
        path,
        who: (Object.keys(security[0] ?? {})[0] ?? "anyone") as Operation["who"],
        responses: o.responses as Record<string, unknown>,
        query: parameters.filter((p) => p.in === "query"),
        params: parameters.filter((p) => p.in === "path").map((p) => p.name),
        body: content?.["application/json"]?.schema,
      };
    }),
  );
}

/** Which of the things of that kind there are so far, or a text. */
type Place = { nth: number } | { text: string };
interface Drawn {
  operation: Operation;
  params: Record<string, Place>;
  query: Array<[name: string, value: string]>;
  headers: Record<string, string>;
  who: { nth: number; how: "right" | "none" | "wrong" };
  body: Buffer | undefined;
}

const rarely = <T, U>(often: fc.Arbitrary<T>, seldom: fc.Arbitrary<U>, weight = 9) =>
  fc.oneof<fc.MaybeWeightedArbitrary<T | U>[]>({ weight, arbitrary: often }, { weight: 1, arbitrary: seldom });
/** What node lets a client put into a header. */
const headerText = hostileText.map((t) => t.slice(0, 300).replace(/[^\t\x20-\x7e\x80-\xff]/g, "?"));

function requestOf(operation: Operation, resolve: (ref: string) => Schema): fc.Arbitrary<Drawn> {
  const place: fc.Arbitrary<Place> = rarely(fc.record({ nth: fc.nat(1_000) }), fc.record({ text: hostileText }));
  const pairs = operation.query.map(({ name, schema }) =>
    fc.option(
      rarely(valuesOf(schema, resolve, 0).map(String), hostileText, 3).map((v): [string, string] => [name, v]),
      { nil: null },
    ),
  );
  const extra = fc.option(fc.tuple(hostileText, hostileText), { nil: null, freq: 10 });
  const json = (spoil: number) =>
    valuesOf(operation.body as Schema, resolve, spoil).map((v) => Buffer.from(JSON.stringify(v) ?? ""));
  const body = operation.body
    ? fc.oneof(
        { weight: 4, arbitrary: json(0) },
        { weight: 3, arbitrary: json(1) },
        { weight: 2, arbitrary: json(4) },
        { weight: 1, arbitrary: hostileBody },
      )
    : fc.option(hostileBody, { nil: undefined, freq: 20 });
  const headers = fc.record(
    {
      "idempotency-key": rarely(
        fc.integer({ min: 0, max: 40 }).map((n) => `key-${n}`),
        headerText,
      ),
      "x-request-id": rarely(fc.constant("asked-1"), headerText, 2),
      prefer: fc.oneof(
        fc.constantFrom("wait=0", "wait=1", "wait=99999999999", "wait=-1", "respond-async, wait=1"),
        headerText,
      ),
      accept: fc.oneof(fc.constantFrom("application/json", "text/csv", "text/html", "*/*"), headerText),
      "accept-language": fc.oneof(fc.constantFrom("ja", "en;q=0.1,ja;q=.", "*;q=1e9"), headerText),
      "if-none-match": headerText,
      origin: headerText,
      cookie: headerText,
      "content-type": rarely(fc.constantFrom("application/json", "application/json; charset=utf-8"), headerText, 19),
    },
    { requiredKeys: operation.body ? ["idempotency-key", "content-type"] : [] },
  );
  return fc.record({
    operation: fc.constant(operation),
    params: fc.record(Object.fromEntries(operation.params.map((p) => [p, place]))),
    query: fc.tuple(...pairs, extra).map((all) => all.filter((p) => p !== null)),
    headers,
    who: fc.record({
      nth: fc.nat(CUSTOMERS.length - 1),
      how: rarely(fc.constant("right" as const), fc.constantFrom("none" as const, "wrong" as const), 14),
    }),
    body,
  });
}

interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
}
const percent = (text: string) => {
  // Longer ones are refused before there is a route: test/neighbours.test.ts.
  const plain = text.slice(0, 200).replace(/\p{Cs}/gu, "\ufffd");
  // A path that would be another one: dots go through as they are, but a client's URL resolves them.
  return encodeURIComponent(plain).replace(/^\.+$/, "%2e");
};

/** What there is to point at: ids that were told in answers. */
class Things {
  readonly saleId: string[] = [];
  readonly id: string[] = [];
  /** Whose each is: nobody else's is found. */
  readonly ownerOf = new Map<string, number>();
  readonly orderId: string[] = [`ord_${"0".repeat(26)}`];
  readonly sku = ["bag", "box"];

  at(operation: Operation, name: string, place: Place): string {
    if ("text" in place) return percent(place.text);
    const list = name === "saleId" ? this.saleId : name === "sku" ? this.sku : this.idsFor(operation, name);
    return list[place.nth % list.length] ?? "rsv_1.0.x";
  }
  private idsFor(operation: Operation, name: string): string[] {
    return name === "orderId" || operation.path.includes("/orders/") ? this.orderId : this.id;
  }
  learn(text: string, owner: number): void {
    for (const id of text.match(/rsv_[\w.-]+/g)?.slice(0, 20) ?? []) {
      if (this.ownerOf.has(id)) continue;
      this.id.push(id);
      this.ownerOf.set(id, owner);
    }
    for (const id of text.match(/ord_[0-9A-Z]{26}/g)?.slice(0, 20) ?? [])
      if (!this.orderId.includes(id)) this.orderId.push(id);
  }
}

export interface Fuzzed {
  asked: number;
  /** How often by code of status. */
  answers: Map<string, number>;
}

function sender(url: string, things: Things) {
  const { hostname, port } = new URL(url);
  const agent = new Agent({ keepAlive: true, maxSockets: 16 });
  const tokens = CUSTOMERS.map((c) => shopper(url, c).authorization);
  function authorizationOf({ operation, who }: Drawn, path: string): string | undefined {
    if (operation.who === "anyone" || who.how === "none") return undefined;
    if (who.how === "wrong") return operation.who === "admin" ? tokens[who.nth] : "Bearer a.b.c";
    if (operation.who === "admin") return `Bearer ${ADMIN_TOKEN}`;
    const owner = things.ownerOf.get(/rsv_[\w.-]+/.exec(path)?.[0] ?? "");
    return tokens[who.nth === 0 ? 0 : (owner ?? who.nth)];
  }
  const pathOf = (d: Drawn) => {
    const path = d.operation.path.replace(/\{(\w+)\}/g, (_, name) =>
      things.at(d.operation, name, d.params[name] as Place),
    );
    const query = d.query.map(([k, v]) => `${percent(k)}=${percent(v)}`).join("&");
    return query ? `${path}?${query}` : path;
  };
  const send = (d: Drawn) =>
    new Promise<Answer>((resolve, reject) => {
      const path = pathOf(d);
      const authorization = authorizationOf(d, path);
      const headers: Record<string, string | number> = { ...d.headers, ...(authorization && { authorization }) };
      // Else node sends the body of a GET as if it were the next request.
      if (d.body) headers["content-length"] = d.body.length;
      const r = rawRequest({ hostname, port, agent, method: d.operation.method, path, headers }, (got) => {
        const answer = { status: got.statusCode ?? 0, headers: got.headers };
        if (String(got.headers["content-type"]).includes("text/event-stream")) {
          resolve({ ...answer, text: "" });
          got.destroy();
          return;
        }
        const chunks: Buffer[] = [];
        got.on("data", (chunk) => chunks.push(chunk));
        got.on("end", () => resolve({ ...answer, text: Buffer.concat(chunks).toString() }));
        got.on("error", reject);
      });
      r.setTimeout(ANSWER_MS_MAX, () => r.destroy(new Error(`no answer within ${ANSWER_MS_MAX} ms`)));
      r.on("error", reject);
      r.end(d.body);
    });
  return { send, pathOf, close: () => agent.destroy() };
}

function problemOf(a: Answer): Record<string, unknown> | null {
  try {
    return JSON.parse(a.text) as Record<string, unknown>;
  } catch {
    return null;
  }
}

/** What is wrong with an answer, or null. */
function faultOf(d: Drawn, a: Answer): string | null {
  const id = a.headers["x-request-id"];
  if (typeof id !== "string" || id === "") return "no X-Request-Id";
  if (d.headers["x-request-id"] === "asked-1" && id !== "asked-1") return "another X-Request-Id than was asked for";
  if (!(String(a.status) in d.operation.responses)) return `status ${a.status} is not documented`;
  if (a.status < 400) return null;
  if (!String(a.headers["content-type"]).startsWith("application/problem+json")) return "no application/problem+json";
  const p = problemOf(a);
  if (!p) return "no problem";
  for (const field of ["type", "title", "code", "detail"]) if (typeof p[field] !== "string") return `no ${field}`;
  if (p.status !== a.status || p.requestId !== id) return "status or requestId differs from the header's";
  if (
    !String((d.operation.responses[String(a.status)] as { description?: string }).description).includes(String(p.code))
  )
    return `code ${p.code} is not documented`;
  if (a.status >= 500 && !(a.status === 503 && MAY_BE_503.has(String(p.code)))) return `${a.status} ${p.code}`;
  return null;
}

/** Asks for so long. Throws, with the seed, at the first answer that must not be. */
export async function fuzz(seed: number, ms: number, say: (line: string) => void): Promise<Fuzzed> {
  const world = await makeWorld();
  try {
    const api = await world.start({ RETRY_GRACE_MS: "1000" });
    return await fuzzAt(api, seed, ms, say);
  } finally {
    await world.close();
  }
}

async function fuzzAt(api: Running, seed: number, ms: number, say: (line: string) => void): Promise<Fuzzed> {
  const op = operator(api.url);
  const things = new Things();
  const items = ["bag", "box"].map((sku) => ({ sku, name: sku, unitPrice: 1000, stock: 1000 }));
  for (const id of ["fuzz-a", "fuzz-b"])
    things.saleId.push((await op.create({ id, items, maxUnitsPerCustomer: 10_000, holdMs: 5_000 })).body.id);
  const document = (await call<Document>(`${api.url}/openapi.json`)).body;
  const resolve = (ref: string) => document.components.schemas[ref.split("/").at(-1) as string] as Schema;
  // Where most goes on is asked most.
  const drawn = fc.oneof(
    ...operationsOf(document).map((o) => ({
      weight: o.body ? 4 : o.path.endsWith("/reconcile") || o.path.endsWith("/audit") ? 1 : 2,
      arbitrary: requestOf(o, resolve),
    })),
  );
  const { send, pathOf, close } = sender(api.url, things);
  const done: Fuzzed = { asked: 0, answers: new Map() };

  async function ask(d: Drawn): Promise<void> {
    const path = pathOf(d);
    const answer = await send(d);
    done.asked++;
    const code = answer.status >= 400 ? (problemOf(answer)?.code ?? "") : "";
    const key = `${answer.status} ${code}`.trim();
    done.answers.set(key, (done.answers.get(key) ?? 0) + 1);
    if (d.operation.who === "shopper") things.learn(answer.text, d.who.nth);
    const fault = faultOf(d, answer);
    if (fault)
      throw new Error(
        `${fault}: ${d.operation.method} ${path.slice(0, 400)} ${JSON.stringify(d.headers)} ${d.body?.toString().slice(0, 2_000)} -> ${answer.status} ${answer.text.slice(0, 500)}`,
      );
  }
  try {
    const together = fc.array(drawn, { minLength: 1, maxLength: 8 });
    const asking = fc.asyncProperty(together, async (some) => {
      await Promise.all(some.map(ask));
    });
    const ended = await fc.check(asking, {
      seed,
      numRuns: 10_000_000,
      interruptAfterTimeLimit: ms,
      markInterruptAsFailure: false,
      endOnFailure: true,
    });
    if (ended.failed)
      throw new Error(`seed ${seed}, run ${ended.numRuns}: ${ended.errorInstance}`, { cause: ended.errorInstance });
  } finally {
    close();
  }
  say(
    `${done.asked} requests: ${[...done.answers]
      .sort(([, a], [, b]) => b - a)
      .map(([k, n]) => `${k} ${n}`)
      .join(", ")}`,
  );
  await stillSells(api, things);
  return done;
}

/** Whoever comes after all that buys as if nothing had been, and the books of every sale balance. */
async function stillSells(api: Running, things: Things): Promise<void> {
  const op = operator(api.url);
  const saleId = (await op.create(saleBodyOf())).body.id;
  const s = shopper(api.url, "honest");
  const { id } = (await s.reserve(saleId, "k")).body;
  const paid = await s.confirm(id, { gateway: "cod" });
  if (paid.status !== 200) throw new Error(`afterwards an honest confirm is answered ${JSON.stringify(paid.body)}`);
  for (const sale of [...things.saleId, saleId])
    await until(`the books of ${sale}`, async () => {
      const audit = await op.audit(sale);
      return (
        audit.items.every((i) => i.difference === 0) && audit.charges.twice === 0 && audit.orders.withoutCharge === 0
      );
    });
}
