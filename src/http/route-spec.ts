/** What a route says about itself, and how that becomes its entry in the OpenAPI document. */
import { type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Priority } from "./load-shedding.ts";
import { PROBLEMS, type ProblemCode } from "./problem.ts";

export interface RouteSpec {
  method: "get" | "post" | "patch" | "delete";
  /** OpenAPI style, `/v1/sales/{saleId}`. */
  path: string;
  summary: string;
  tag: "Storefront" | "Operator" | "Operations";
  who: "anyone" | "shopper" | "admin";
  body?: z.ZodType;
  /** Header parameters by name, with what they mean. */
  headers?: Record<string, string>;
  query?: z.ZodObject;
  answers: Record<number, { description: string; schema?: z.ZodType; type?: string }>;
  problems?: ProblemCode[];
  /** Who is let go first when there is too much (load-shedding.ts); absent = never. */
  priority?: Priority;
}

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
  })
  .openapi("Problem");

type Registry = OpenAPIHono["openAPIRegistry"];
type PathEntry = Parameters<Registry["registerPath"]>[0];

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

function responsesOf(spec: RouteSpec): PathEntry["responses"] {
  const responses: Record<string, { description: string; content?: Record<string, { schema: z.ZodType }> }> = {};
  for (const code of problemsOf(spec)) {
    const { status } = PROBLEMS[code];
    const before = responses[status]?.description;
    responses[status] = {
      description: before ? `${before}, ${code}` : code,
      content: { "application/problem+json": { schema: problemSchema } },
    };
  }
  for (const [status, a] of Object.entries(spec.answers)) {
    responses[status] = {
      description: a.description,
      ...(a.schema && { content: { [a.type ?? "application/json"]: { schema: a.schema } } }),
    };
  }
  return responses as PathEntry["responses"];
}

function requestOf(spec: RouteSpec): PathEntry["request"] {
  const params = pathParams(spec.path);
  const headers = Object.entries(spec.headers ?? {});
  return {
    ...(params.length > 0 && { params: z.object(Object.fromEntries(params.map((p) => [p, z.string()]))) }),
    ...(spec.query && { query: spec.query }),
    ...(headers.length > 0 && {
      headers: z.object(
        Object.fromEntries(headers.map(([h, description]) => [h, z.string().openapi({ description })])),
      ),
    }),
    ...(spec.body && { body: { required: true, content: { "application/json": { schema: spec.body } } } }),
  };
}

/** Puts the route into the document. */
export function describe(registry: Registry, spec: RouteSpec): void {
  registry.registerPath({
    method: spec.method,
    path: spec.path,
    summary: spec.summary,
    tags: [spec.tag],
    ...(spec.who !== "anyone" && { security: [{ [spec.who]: [] }] }),
    request: requestOf(spec),
    responses: responsesOf(spec),
  });
}
