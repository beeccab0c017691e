import { hash, timingSafeEqual } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { createSigner, createVerifier } from "fast-jwt";
import { Problem } from "./problem.ts";

export const AUDIENCE = "fukubukuro";
const LEEWAY_MS = 30_000;
/**
 * Verified tokens kept, so that a token is verified once; a few hundred bytes each. Two generations of half as many
 * each.
 */
const TOKENS_MAX = 100_000;
/** And so many characters of them, since a login may put much into its tokens. */
const TOKENS_LENGTH_MAX = 32 * 1_048_576;
const TOKEN_LENGTH_MAX = 4_096;
/** 1-128 visible characters. */
export const CUSTOMER_ID = /^[^\s\p{C}]{1,128}$/u;

/** Customer id of a shopper's `Authorization` header, or UNAUTHENTICATED. HS256 only; each of the secrets is live. */
export function shopperAuth(secrets: string[]): (header: string | undefined) => string {
  const verifiers = secrets.map((key) =>
    createVerifier({
      key,
      algorithms: ["HS256"],
      allowedAud: AUDIENCE,
      clockTolerance: LEEWAY_MS,
      requiredClaims: ["exp", "sub", "aud"],
      cache: false,
    }),
  );
  type Verified = { customerId: string; expiresAtMs: number };
  // When the younger generation is full it becomes the older one: no entry is ever searched for to be thrown out.
  let young = new Map<string, Verified>();
  let old = new Map<string, Verified>();
  let youngLength = 0;

  function verify(token: string): Verified | null {
    for (const check of verifiers) {
      try {
        const { sub, exp } = check(token) as { sub: unknown; exp: unknown };
        if (typeof sub === "string" && CUSTOMER_ID.test(sub) && typeof exp === "number")
          return { customerId: sub, expiresAtMs: exp * 1000 + LEEWAY_MS };
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
      if (young.size >= TOKENS_MAX / 2 || youngLength >= TOKENS_LENGTH_MAX / 2)
        [old, young, youngLength] = [young, new Map(), 0];
      young.set(header, found);
      youngLength += header.length;
    }
    if (Date.now() >= found.expiresAtMs) throw new Problem("UNAUTHENTICATED", "the token has expired");
    return found.customerId;
  };
}

/** A token for trying out; a shop's own login makes the real ones. */
export function signShopperToken(secret: string, customerId: string, lifeMs: number): string {
  return createSigner({ key: secret, algorithm: "HS256", expiresIn: lifeMs, aud: AUDIENCE, sub: customerId })({});
}

const SESSION_COOKIE = "fukubukuro_admin";
const SESSION_MS = 12 * 3_600_000;
const SESSION_AUDIENCE = "fukubukuro-admin";

export type AdminAuth = ReturnType<typeof adminAuth>;

/**
 * Operators: the admin token as a bearer, or the cockpit's session. Tokens are kept and compared as digests: comparing
 * strings of unequal length would throw, or tell. A session is signed with a key made from its token, so every process
 * knows it and a new token ends it.
 */
export function adminAuth(tokens: string[] | undefined) {
  const digest = (token: string) => Buffer.from(hash("sha256", token), "hex");
  const wanted = tokens?.map(digest) ?? [];
  const keys = tokens?.map((token) => hash("sha256", `fukubukuro cockpit session ${token}`)) ?? [];
  const verifiers = keys.map((key) =>
    createVerifier({
      key,
      algorithms: ["HS256"],
      allowedAud: SESSION_AUDIENCE,
      requiredClaims: ["exp", "aud"],
      cache: false,
    }),
  );

  /** Which of the live tokens it is; -1 for none. */
  function indexOf(token: string): number {
    const given = digest(token);
    // All are compared, so that the time does not tell which.
    return wanted.map((w) => timingSafeEqual(w, given)).indexOf(true);
  }

  function hasSession(headers: IncomingHttpHeaders): boolean {
    const cookie = new RegExp(`(?:^|;\\s*)${SESSION_COOKIE}=([A-Za-z0-9._-]{1,1000})(?:;|$)`).exec(
      headers.cookie ?? "",
    )?.[1];
    if (!cookie) return false;
    return verifiers.some((verify) => {
      try {
        verify(cookie);
        return true;
      } catch {
        return false;
      }
    });
  }

  return {
    /**
     * Throws UNAUTHENTICATED or ADMIN_DISABLED. A session does nothing for a page of another site, whatever the
     * cookie's rules let through.
     */
    check(method: string, headers: IncomingHttpHeaders): void {
      if (!tokens) throw new Problem("ADMIN_DISABLED");
      if (headers.authorization !== undefined) {
        if (headers.authorization.startsWith("Bearer ") && indexOf(headers.authorization.slice(7)) >= 0) return;
      } else if (isOfThisSite(method, headers) && hasSession(headers)) return;
      throw new Problem("UNAUTHENTICATED");
    },
    /** The cookie of a new session, or null for a wrong token. */
    signIn(token: string, secure: boolean): string | null {
      const at = indexOf(token);
      if (at < 0) return null;
      const session = createSigner({
        key: keys[at] as string,
        algorithm: "HS256",
        expiresIn: SESSION_MS,
        aud: SESSION_AUDIENCE,
      })({});
      return cookieOf(session, SESSION_MS / 1000, secure);
    },
    signOut: (secure: boolean) => cookieOf("", 0, secure),
  };
}

const cookieOf = (value: string, seconds: number, secure: boolean) =>
  `${SESSION_COOKIE}=${value}; Path=/; Max-Age=${seconds}; HttpOnly; SameSite=Strict${secure ? "; Secure" : ""}`;

/** Whether a browser made the request for a page of ours: it says so itself, and scripts cannot change it. */
export function isOfThisSite(method: string, headers: IncomingHttpHeaders): boolean {
  const site = headers["sec-fetch-site"];
  if (site !== undefined) return site === "same-origin" || (site === "none" && method === "GET");
  if (method === "GET" || method === "HEAD") return true;
  try {
    return new URL(headers.origin ?? "").host === headers.host;
  } catch {
    return false;
  }
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
