/**
 * What callers send who mean no good, or whose programs are broken: texts, values, and bodies made from the document's
 * own schemas.
 */
import fc from "fast-check";

/** A schema as /openapi.json has it. */
export interface Schema {
  $ref?: string;
  type?: string | string[];
  enum?: unknown[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: boolean | Schema;
  items?: Schema;
  minItems?: number;
  maxItems?: number;
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  format?: string;
}

const units = fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 40 }).map((n) => String.fromCharCode(...n));

export const hostileText: fc.Arbitrary<string> = fc.oneof(
  fc.constantFrom(
    "\u0000",
    "a\u0000b",
    "\ud800",
    "\udfff",
    "a\ud800b",
    "\udc00\ud800",
    "\u0001",
    "\u001b[2J",
    "\u007f",
    "\u0085",
    "\ufeff",
    "\uffff",
    "\ufffe",
    "\u2028",
    "\u202eabc",
    "\u200b",
    "",
    " ",
    "\n",
    "\r\nX-Injected: 1",
    "a|b|c",
    "a\nb",
    "{fb}",
    "$1",
    "%00",
    "%s%n",
    "../../etc/passwd",
    "..",
    "__proto__",
    "constructor",
    "toString",
    "null",
    "NaN",
    "-1",
    "'; drop table sales; --",
    "=HYPERLINK(1)",
    "<script>alert(1)</script>",
    "\\u0000",
    "\u{1f468}\u200d\u{1f469}\u200d\u{1f467}".repeat(40),
    "e\u0301".repeat(300),
    "\u{20bb7}".repeat(200),
    "x".repeat(201),
    "x".repeat(5_000),
  ),
  fc.string({ unit: "binary", maxLength: 60 }),
  fc.string({ unit: "grapheme", maxLength: 60 }),
  units,
);

export const hostileValue: fc.Arbitrary<unknown> = fc.oneof(
  { weight: 4, arbitrary: hostileText },
  { weight: 2, arbitrary: fc.constantFrom<unknown>(null, true, false, [], {}, [[]], [null], { a: { b: [] } }) },
  { weight: 1, arbitrary: fc.constantFrom(0, -0, -1, 0.5, 1e308, -1e308, 2 ** 31, 2 ** 53, 2 ** 63, 1e21, 5e-324) },
  { weight: 1, arbitrary: fc.maxSafeInteger() },
  { weight: 1, arbitrary: fc.jsonValue({ maxDepth: 3 }) },
);

/** Bodies that are no JSON, or JSON that no program writes. */
export const hostileBody: fc.Arbitrary<Buffer> = fc.oneof(
  fc
    .constantFrom(
      "",
      "{",
      "null",
      "[]",
      '"text"',
      '{"lines":1e999}',
      '{"lines":[{"sku":"bag","quantity":1e400}]}',
      '{"delta":1e999,"reason":"x"}',
      '{"lines":[{"sku":"bag","quantity":1,"quantity":2}]}',
      '{"__proto__":{"x":1}}',
      "[".repeat(5_000),
      `{"a":${"[".repeat(2_000)}${"]".repeat(2_000)}}`,
      `{"reason":"${"x".repeat(20_000)}"}`,
      "\ufeff{}",
      "\u0000",
    )
    .map((text) => Buffer.from(text)),
  fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  hostileValue.map((v) => Buffer.from(JSON.stringify(v) ?? "")),
  // What stands in a text is no UTF-8.
  fc.constant(
    Buffer.concat([
      Buffer.from('{"reason":"'),
      Buffer.from([0xff, 0xc0, 0x80, 0xed, 0xa0, 0x80]),
      Buffer.from('","restock":true}'),
    ]),
  ),
);

/** What a field of this name has to be, for a request to get past the door at all. */
const MEANT: Record<string, fc.Arbitrary<unknown>> = {
  sku: fc.constantFrom("bag", "box"),
  id: fc.integer({ min: 0, max: 15 }).map((n) => `made-${n}`),
  payment: fc.constantFrom(
    ...[{ gateway: "cod" }, { gateway: "sandbox", token: "tok_ok" }, { token: "tok_declined" }, { token: "tok_3ds" }],
  ),
  gateway: fc.constantFrom("cod", "sandbox"),
  token: fc.constantFrom("tok_ok", "tok_ok", "tok_declined", "tok_3ds"),
  currency: fc.constantFrom("JPY", "EUR", "XXX"),
  returnUrl: fc.constantFrom("https://shop.example/back", "http://localhost/?a=%00"),
  gateways: fc.constantFrom(["cod"], ["sandbox", "cod"]),
  opensAt: fc.constantFrom("2000-01-01T00:00:00Z", "2026-01-01T00:00:00+09:00", "2099-01-01T00:00:00Z"),
  closesAt: fc.constantFrom("2099-12-31T23:59:59Z", "2099-06-01T00:00:00Z", "2000-01-02T00:00:00Z"),
  delta: fc.integer({ min: -3, max: 5 }),
  // Else the shop would be shut most of the time.
  reserving: fc.constantFrom("on", "on", "on", "off"),
  paying: fc.constantFrom("on", "on", "on", "off"),
};

/** Values of a schema; at every place one of `spoil`, at that weight among ten. */
export function valuesOf(
  schema: Schema,
  resolve: (ref: string) => Schema,
  spoil: number,
  name = "",
): fc.Arbitrary<unknown> {
  const within = proper(schema, resolve, spoil);
  // Much spoilt, also what is inside of it.
  const meant = MEANT[name] ? (spoil > 1 ? fc.oneof(MEANT[name], within) : MEANT[name]) : within;
  if (spoil === 0) return meant;
  return fc.oneof({ weight: 10 - spoil, arbitrary: meant }, { weight: spoil, arbitrary: hostileValue });
}

function proper(schema: Schema, resolve: (ref: string) => Schema, spoil: number): fc.Arbitrary<unknown> {
  if (schema.$ref) return proper(resolve(schema.$ref), resolve, spoil);
  if (schema.enum) return fc.constantFrom(...schema.enum);
  const branches = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (branches) return fc.oneof(...branches.map((s) => proper(s, resolve, spoil)));
  switch (Array.isArray(schema.type) ? schema.type[0] : schema.type) {
    case "object":
      return objectOf(schema, resolve, spoil);
    case "array":
      return fc.array(valuesOf(schema.items ?? {}, resolve, spoil), {
        minLength: schema.minItems ?? 0,
        maxLength: Math.min(schema.maxItems ?? 3, 3),
      });
    case "integer":
    case "number":
      return wholeOf(schema.minimum ?? 0, schema.maximum ?? 1_000);
    case "boolean":
      return fc.boolean();
    default:
      return textOf(schema);
  }
}

/** Mostly small, so that stock lasts; and both ends. */
const wholeOf = (min: number, max: number) =>
  fc.oneof(fc.integer({ min, max: Math.min(max, Math.max(min, 0) + 3) }), fc.constantFrom(min, max));

function objectOf(schema: Schema, resolve: (ref: string) => Schema, spoil: number): fc.Arbitrary<unknown> {
  const fields = Object.entries(schema.properties ?? {});
  const model = Object.fromEntries(fields.map(([name, s]) => [name, valuesOf(s, resolve, spoil, name)]));
  const whole = fc.record(model, { requiredKeys: schema.required ?? [] });
  if (spoil === 0) return whole;
  const lacking = fc.record(model, { requiredKeys: [] });
  const more = fc.tuple(whole, hostileText, hostileValue).map(([o, name, v]) => ({ ...o, [name]: v }));
  return fc.oneof({ weight: 8, arbitrary: whole }, { weight: 1, arbitrary: lacking }, { weight: 1, arbitrary: more });
}

/** Texts within the rules, and as odd as the rules allow. */
function textOf({ format, pattern, minLength = 0, maxLength = 40 }: Schema): fc.Arbitrary<string> {
  if (format === "email") return fc.constantFrom("hana@example.jp", "o'hara+x@mail.example.co.jp");
  if (format === "date-time") return fc.constantFrom("2026-01-01T00:00:00Z", "2050-01-01T00:00:00+09:00");
  if (pattern) return fc.stringMatching(new RegExp(pattern));
  return fc
    .oneof(
      fc.constantFrom(
        "福袋",
        "a\u202eb",
        "\u{1f380}",
        "A\u0301\u200d",
        "=1+1",
        'O\'Hara "x" <b>',
        "\ufffd",
        "ｶﾞ",
        "\ufeff",
      ),
      fc.string({ unit: "grapheme", maxLength }),
    )
    .map((t) => (t.length < minLength ? "福" : [...t].slice(0, maxLength).join("")));
}
