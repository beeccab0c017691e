import { hash, timingSafeEqual } from "node:crypto";
import { createSigner } from "fast-jwt";
import { Problem } from "./problem.ts";

export const AUDIENCE = "fukubukuro";
const LEEWAY_MS = 30_000;
/** Verified tokens kept, so that a token is verified once; a few hundred bytes each. Two generations of half as many each. */
const TOKENS_MAX = 100_000;
const TOKEN_LENGTH_MAX = 4_096;
/** 1-128 visible characters. */
export const CUSTOMER_ID = /^[^\s\p{C}]{1,128}$/u;

/** A JWT's header as `{"alg":"HS256"}`, with or without typ; nothing else is let in, so there is no algorithm to choose. */
const HEADERS = new Set(
  [{ alg: "HS256" }, { alg: "HS256", typ: "JWT" }, { typ: "JWT", alg: "HS256" }].map((h) => Buffer.from(JSON.stringify(h)).toString("base64url")),
);

const BLOCK_BYTES = 64;

/**
 * HMAC-SHA256 of short texts under one key (RFC 2104) by two one-shot hashes: a third of the time of the streaming Hmac, and
 * at the opening second every shopper's token is new. A test holds it to node's own.
 */
export function hmacSha256(key: string): (text: string) => Buffer {
  const bytes = Buffer.from(key);
  const block = Buffer.alloc(BLOCK_BYTES);
  (bytes.length > BLOCK_BYTES ? hash("sha256", bytes, "buffer") : bytes).copy(block);
  const inner = block.map((b) => b ^ 0x36);
  const outer = block.map((b) => b ^ 0x5c);
  return (text) => hash("sha256", Buffer.concat([outer, hash("sha256", Buffer.concat([inner, Buffer.from(text)]), "buffer")]), "buffer");
}

/** Customer id of a shopper's `Authorization` header, or UNAUTHENTICATED. HS256 only; each of the secrets is live. */
export function shopperAuth(secrets: string[]): (header: string | undefined) => string {
  const signatures = secrets.map(hmacSha256);
  type Verified = { customerId: string; expiresAtMs: number };
  // When the younger generation is full it becomes the older one: no entry is ever searched for to be thrown out.
  let young = new Map<string, Verified>();
  let old = new Map<string, Verified>();

  function verify(token: string): Verified | null {
    const [header = "", claims = "", signature = "", more] = token.split(".");
    if (more !== undefined || !HEADERS.has(header)) return null;
    const given = Buffer.from(signature, "base64url");
    const signed = `${header}.${claims}`;
    // One canonical spelling of a signature, so that a token has one form.
    if (!signatures.some((sign) => given.length === 32 && timingSafeEqual(sign(signed), given)) || given.toString("base64url") !== signature) return null;
    let c: { sub?: unknown; aud?: unknown; exp?: unknown; nbf?: unknown };
    try {
      c = JSON.parse(Buffer.from(claims, "base64url").toString("utf8"));
    } catch {
      return null;
    }
    if (c?.aud !== AUDIENCE && !(Array.isArray(c?.aud) && c.aud.includes(AUDIENCE))) return null;
    if (typeof c.sub !== "string" || !CUSTOMER_ID.test(c.sub) || typeof c.exp !== "number") return null;
    if (c.nbf !== undefined && !(typeof c.nbf === "number" && c.nbf * 1000 <= Date.now() + LEEWAY_MS)) return null;
    return { customerId: c.sub, expiresAtMs: c.exp * 1000 + LEEWAY_MS };
  }

  return (header) => {
    if (!header?.startsWith("Bearer ") || header.length > TOKEN_LENGTH_MAX) throw new Problem("UNAUTHENTICATED");
    const token = header.slice(7);
    let found = young.get(token);
    if (!found) {
      found = old.get(token) ?? verify(token) ?? undefined;
      if (!found) throw new Problem("UNAUTHENTICATED");
      if (young.size >= TOKENS_MAX / 2) [old, young] = [young, new Map()];
      young.set(token, found);
    }
    if (Date.now() >= found.expiresAtMs) throw new Problem("UNAUTHENTICATED", "the token has expired");
    return found.customerId;
  };
}

/** A token for trying out; a shop's own login makes the real ones. */
export function signShopperToken(secret: string, customerId: string, lifeMs: number): string {
  return createSigner({ key: secret, algorithm: "HS256", expiresIn: lifeMs, aud: AUDIENCE, sub: customerId })({});
}

/** Admin tokens are kept and compared as digests: comparing strings of unequal length would throw, or tell. */
export function adminAuth(tokens: string[] | undefined): (header: string | undefined) => void {
  const digest = (token: string) => Buffer.from(hash("sha256", token), "hex");
  const wanted = tokens?.map(digest);
  return (header) => {
    if (!wanted) throw new Problem("ADMIN_DISABLED");
    const given = digest(header?.startsWith("Bearer ") ? header.slice(7) : "");
    // All are compared, so that the time does not tell which.
    if (wanted.filter((w) => timingSafeEqual(w, given)).length === 0) throw new Problem("UNAUTHENTICATED");
  };
}

/** Requests per customer and second, counted in this process without asking anyone. */
export function customerRate(perSecond: number): (customerId: string) => void {
  let counts = new Map<string, number>();
  let second = 0;
  return (customerId) => {
    const now = Math.floor(Date.now() / 1000);
    if (now !== second) {
      second = now;
      counts = new Map();
    }
    const n = (counts.get(customerId) ?? 0) + 1;
    counts.set(customerId, n);
    if (n > perSecond) throw new Problem("RATE_LIMITED");
  };
}
