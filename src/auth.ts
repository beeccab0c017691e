import { hash, timingSafeEqual } from "node:crypto";
import { createSigner, createVerifier } from "fast-jwt";
import { Problem } from "./problem.ts";

export const AUDIENCE = "fukubukuro";
const LEEWAY_MS = 30_000;
/** Verified tokens kept, so that a token is verified once; a few hundred bytes each. Two generations of half as many each. */
const TOKENS_MAX = 100_000;
const TOKEN_LENGTH_MAX = 4_096;
/** 1-128 visible characters. */
export const CUSTOMER_ID = /^[^\s\p{C}]{1,128}$/u;

/** Customer id of a shopper's `Authorization` header, or UNAUTHENTICATED. HS256 only; each of the secrets is live. */
export function shopperAuth(secrets: string[]): (header: string | undefined) => string {
  const verifiers = secrets.map((key) =>
    createVerifier({ key, algorithms: ["HS256"], allowedAud: AUDIENCE, clockTolerance: LEEWAY_MS, requiredClaims: ["exp", "sub", "aud"], cache: false }),
  );
  type Verified = { customerId: string; expiresAtMs: number };
  // When the younger generation is full it becomes the older one: no entry is ever searched for to be thrown out.
  let young = new Map<string, Verified>();
  let old = new Map<string, Verified>();

  function verify(token: string): Verified | null {
    for (const check of verifiers) {
      try {
        const { sub, exp } = check(token) as { sub: unknown; exp: unknown };
        if (typeof sub === "string" && CUSTOMER_ID.test(sub) && typeof exp === "number") return { customerId: sub, expiresAtMs: exp * 1000 + LEEWAY_MS };
      } catch {
        // not this secret, or not valid at all
      }
    }
    return null;
  }

  return (header) => {
    if (!header?.startsWith("Bearer ") || header.length > TOKEN_LENGTH_MAX) throw new Problem("UNAUTHENTICATED");
    // Kept by the whole header: cutting the token out of it first would cost as much as finding it.
    let found = young.get(header);
    if (!found) {
      found = old.get(header) ?? verify(header.slice(7)) ?? undefined;
      if (!found) throw new Problem("UNAUTHENTICATED");
      if (young.size >= TOKENS_MAX / 2) [old, young] = [young, new Map()];
      young.set(header, found);
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
