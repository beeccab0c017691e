/** Talking to the admin routes with the session that signing in gave. */
import { COCKPIT_WORDS } from "../words.ts";
import { language } from "./dom.ts";

export const w = COCKPIT_WORDS[language];

export interface ProblemBody {
  code?: string;
  detail?: string;
  errors?: Array<{ path: string; message: string }>;
}
export class Refused extends Error {
  readonly body: ProblemBody;
  constructor(body: ProblemBody, status: number) {
    super(body.detail ?? `${w.failed} (${status})`);
    this.body = body;
  }
}
export async function admin<T>(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<T> {
  const response = await fetch(`/v1/admin${path}`, {
    method,
    headers: {
      accept: "application/json",
      ...(body !== undefined && { "content-type": "application/json" }),
      ...headers,
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  if (response.status === 401) location.assign("/admin");
  const said = (await response.json().catch(() => ({}))) as T & ProblemBody;
  if (!response.ok) throw new Refused(said, response.status);
  return said;
}
