/** What a route says about itself, and how that becomes its entry in the OpenAPI document. */
import { type OpenAPIHono, z } from "@hono/zod-openapi";
import { instant, reservationView } from "./contract.ts";
import type { Priority } from "./load-shedding.ts";
import { PROBLEMS, type ProblemCode } from "./problem.ts";

interface Content {
  schema: z.ZodType;
  example: unknown;
}
interface Answer {
  description: string;
  /** Of `type`; an answer without has no body. */
  content?: Content;
  /** `application/json` unless told otherwise. */
  type?: string;
  /** Texts of other types that may be asked for by `Accept`, with an example of each. */
  texts?: Record<string, string>;
}

export interface RouteSpec {
  method: "get" | "post" | "patch" | "delete";
  /** OpenAPI style, `/v1/sales/{saleId}`. */
  path: string;
  /** What generated clients call it. */
  operationId: string;
  summary: string;
  description: string;
  tag: "Storefront" | "Operator" | "Operations";
  who: "anyone" | "shopper" | "admin";
  body?: z.ZodType;
  bodyExample?: unknown;
  /** Header parameters by name, with what they mean. */
  headers?: Record<string, { description: string; required: boolean; example: string }>;
  query?: z.ZodObject;
  answers: Record<number, Answer>;
  problems?: ProblemCode[];
  /** Who is let go first when there is too much (load-shedding.ts); absent = never. */
  priority?: Priority;
}

const lineShort = z.object({ sku: z.string(), requested: z.number().int(), free: z.number().int() });
const problemSchema = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.number().int(),
    code: z.enum(Object.keys(PROBLEMS) as [ProblemCode, ...ProblemCode[]]),
    detail: z.string(),
    requestId: z.string(),
    retryAfterMs: z.number().int().optional(),
    errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
    lines: z.array(lineShort).optional().openapi({ description: "of the stock codes: what is short" }),
    nextReleaseAt: instant.nullable().optional().openapi({ description: "of ALL_HELD: when the next hold ends" }),
    opensAt: instant.optional().openapi({ description: "of SALE_NOT_OPEN" }),
    limit: z.number().int().optional().openapi({ description: "of LIMIT_REACHED" }),
    units: z.number().int().optional().openapi({ description: "of LIMIT_REACHED: what the customer has already" }),
    free: z.number().int().optional().openapi({ description: "of BELOW_COMMITTED" }),
    orderId: z.string().optional().openapi({ description: "of ALREADY_CONFIRMED" }),
    declineCode: z.string().optional().openapi({ description: "of PAYMENT_DECLINED" }),
    reservation: reservationView.optional(),
  })
  .openapi("Problem", { description: "RFC 9457; `code` is stable" });

type Registry = OpenAPIHono["openAPIRegistry"];
type PathEntry = Parameters<Registry["registerPath"]>[0];
type Responses = Record<string, { description: string; content?: Record<string, Content> }>;

/** Names of the path's parameters, in their order. */
export const pathParams = (path: string): string[] => [...path.matchAll(/\{(\w+)\}/g)].map((m) => m[1] as string);

/** Every refusal that the route may answer: its own, and those of its kind. */
function problemsOf(spec: RouteSpec): Set<ProblemCode> {
  const problems = new Set<ProblemCode>([...(spec.problems ?? []), "OVERLOADED", "UNAVAILABLE", "INTERNAL_ERROR"]);
  if (spec.who !== "anyone") problems.add("UNAUTHENTICATED");
  if (spec.who === "admin") problems.add("ADMIN_DISABLED");
  if (spec.who === "shopper") problems.add("RATE_LIMITED");
  if (spec.body)
    for (const code of ["INVALID_JSON", "BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "INVALID_REQUEST"] as const)
      problems.add(code);
  if (pathParams(spec.path).length > 0) problems.add("NOT_FOUND");
  return problems;
}

const problemExample = (code: ProblemCode) => ({
  type: `urn:fukubukuro:problem:${code.toLowerCase()}`,
  title: PROBLEMS[code].title,
  status: PROBLEMS[code].status,
  code,
  detail: PROBLEMS[code].title,
  requestId: "k3x9qf-1a",
});

function responsesOf(spec: RouteSpec): PathEntry["responses"] {
  const responses: Responses = {};
  for (const code of problemsOf(spec)) {
    const { status } = PROBLEMS[code];
    const before = responses[status];
    const example = before?.content?.["application/problem+json"]?.example ?? problemExample(code);
    responses[status] = {
      description: before ? `${before.description}, ${code}` : code,
      content: { "application/problem+json": { schema: problemSchema, example } },
    };
  }
  for (const [status, { description, content, type = "application/json", texts = {} }] of Object.entries(
    spec.answers,
  )) {
    const others = Object.entries(texts).map(([t, example]) => [t, { schema: z.string(), example }] as const);
    responses[status] = {
      description,
      ...(content && { content: { [type]: content, ...Object.fromEntries(others) } }),
    };
  }
  return responses as PathEntry["responses"];
}

/** What the parameters of paths mean. */
const PARAMS: Record<string, { description: string; example: string }> = {
  saleId: { description: "the sale's id", example: "ny2027" },
  sku: { description: "the item's sku", example: "bag-m" },
  id: { description: "the id that an answer gave", example: "rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF" },
  reference: { description: "the payment's reference", example: "0LOG5X1Q2A7GZK3M9T4WBN8RCE" },
  orderId: { description: "the order's id", example: "ord_0LOG5X1Q2A7GZK3M9T4WBN8RCE" },
};

function requestOf(spec: RouteSpec): PathEntry["request"] {
  const params = pathParams(spec.path).map((p) => [p, z.string().openapi(PARAMS[p] ?? {})] as const);
  const headers = Object.entries(spec.headers ?? {}).map(([name, { required, ...about }]) => {
    const header = z.string().openapi(about);
    return [name, required ? header : header.optional()] as const;
  });
  const json = spec.body && { schema: spec.body, example: spec.bodyExample };
  return {
    ...(params.length > 0 && { params: z.object(Object.fromEntries(params)) }),
    ...(spec.query && { query: spec.query }),
    ...(headers.length > 0 && { headers: z.object(Object.fromEntries(headers)) }),
    ...(json && { body: { required: true, content: { "application/json": json } } }),
  } as PathEntry["request"];
}

/** Puts the route into the document. */
export function describe(registry: Registry, spec: RouteSpec): void {
  registry.registerPath({
    method: spec.method,
    path: spec.path,
    operationId: spec.operationId,
    summary: spec.summary,
    description: spec.description,
    tags: [spec.tag],
    security: spec.who === "anyone" ? [] : [{ [spec.who]: [] }],
    request: requestOf(spec),
    responses: responsesOf(spec),
  });
}
