/** What operators did. The rows are written by the routes that do something (doors.ts). */
import { desc, eq } from "drizzle-orm";
import type { Context as Http } from "hono";
import { adminLog } from "../stores/schema.ts";
import * as contract from "./contract.ts";
import { check } from "./contract.ts";
import type { OperatorDoor } from "./doors.ts";
import * as examples from "./examples.ts";
import type { RouteSpec } from "./route-spec.ts";

const READ_LOG: RouteSpec = {
  method: "get",
  path: "/v1/admin/log",
  operationId: "readLog",
  summary: "What operators did, newest first",
  description: "One entry for each change, with what was asked for.",
  tag: "Operator",
  who: "admin",
  query: contract.logQuery,
  answers: { 200: { description: "the trail", content: { schema: contract.logView, example: examples.log } } },
  problems: ["INVALID_REQUEST"],
};

export function adminLogRoute(door: OperatorDoor): void {
  door.routes.route(READ_LOG, (c) => readLog(door, c));
}

async function readLog(door: OperatorDoor, c: Http): Promise<Response> {
  const { ctx, routes } = door;
  door.check(c);
  const q = check(contract.logQuery, c.req.query());
  const rows = await ctx.db
    .select()
    .from(adminLog)
    .where(q.saleId === undefined ? undefined : eq(adminLog.saleId, q.saleId))
    .orderBy(desc(adminLog.id))
    .limit(q.limit);
  return routes.json(c, 200, {
    entries: rows.map(({ at, action, saleId, detail }) => ({ at: at.toISOString(), action, saleId, detail })),
  });
}
