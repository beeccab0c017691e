import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readConfig } from "../src/config.ts";
import { ConfigError } from "../src/domain/errors.ts";
import { csvCell } from "../src/http/orders-csv.ts";
import { needsLocal } from "../src/local/stack.ts";
import { confirmationMail } from "../src/notify/mail.ts";

const REDIS_URL = "redis://127.0.0.1:6379";
const DATABASE_URL = "postgres://127.0.0.1/fukubukuro";

describe("the start", () => {
  it.each([
    ["only Redis is named", { REDIS_URL }, /DATABASE_URL/],
    ["only Postgres is named", { DATABASE_URL }, /REDIS_URL/],
    ["production names neither", { NODE_ENV: "production" }, /REDIS_URL and DATABASE_URL/],
  ])("ends with one sentence when %s, instead of becoming local mode", (_, env, names) => {
    expect(() => needsLocal(readConfig(env))).toThrow(ConfigError);
    expect(() => needsLocal(readConfig(env))).toThrow(names);
  });

  it("is local when neither store is named, and a node of production when both are", () => {
    expect(needsLocal(readConfig({}))).toBe(true);
    expect(needsLocal(readConfig({ REDIS_URL, DATABASE_URL, NODE_ENV: "production" }))).toBe(false);
  });

  it("reads a secret from the file that is named, a value that is set itself first, and says which file cannot be read", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-secrets-"));
    const file = join(folder, "admin-token");
    await writeFile(file, "Kq7-vW2x_Zp9rT4m\n");
    expect(readConfig({ ADMIN_TOKEN_FILE: file }).adminTokens).toEqual(["Kq7-vW2x_Zp9rT4m"]);
    expect(readConfig({ ADMIN_TOKEN_FILE: file, ADMIN_TOKEN: "Yb3-nC8d_Lw5fH1s" }).adminTokens).toEqual([
      "Yb3-nC8d_Lw5fH1s",
    ]);
    await writeFile(file, "\n");
    for (const path of [file, join(folder, "none")])
      expect(() => readConfig({ ADMIN_TOKEN_FILE: path })).toThrow(
        /^ADMIN_TOKEN_FILE is "[^"]+": that file (is empty|cannot be read)\.$/,
      );
    await rm(folder, { recursive: true });
  });

  it.each(["aaaaaaaaaaaaaaaaaaaaaaaa", "1234123412341234", "changeme-changeme", "my-password-is-safe", "short"])(
    "refuses the admin token %s, which can be guessed, without repeating it",
    (token) => {
      expect(() => readConfig({ ADMIN_TOKEN: token })).toThrow(/^ADMIN_TOKEN is set wrongly: [^\n]*\.$/);
      expect(() => readConfig({ ADMIN_TOKEN: token })).not.toThrow(token);
    },
  );
});

describe("a cell of the orders' CSV", () => {
  it.each(["=1+1", "+1", "-1", "@SUM(A1)", "＝1+1", "＋1", "－1", "＠A1", "\t=1", "\n=1", "\r=1", " =1", "　=1"])(
    "that begins as %j is no formula",
    (text) => {
      expect(csvCell(text).replace(/^"/, "").startsWith("'")).toBe(true);
    },
  );
  it("of plain text stays as it is", () => expect(csvCell("山田 花")).toBe("山田 花"));
});

describe("a confirmation mail", () => {
  const sale = { name: "New Year", details: { taxPercent: 10 }, items: new Map([["bag", { taxPercent: 10 }]]) };
  const order = {
    id: "ord_1",
    amount: 5_000,
    currency: "JPY",
    contact: { email: "hana@example.jp", name: "山田 花" },
    shipTo: null,
    gateway: "sandbox",
    confirmedAt: new Date(),
    lines: [{ sku: "bag", quantity: 1, unitPrice: 5_000, name: "Bag" }],
  };
  const mailTo = (name: string, address?: string) =>
    confirmationMail(
      { ...order, contact: { ...order.contact, name }, shipTo: address ? { address } : null },
      sale,
      "en",
    );

  it.each([
    "You won! https://evil.example/claim now",
    "visit www.evil.example",
    "evil.example/claim",
    "HTTP://EVIL.EXAMPLE",
    "mail me@evil.example",
  ])("carries no link that the shopper wrote as a name: %s", (name) => {
    const { text, html } = mailTo(name);
    for (const form of [text, html]) expect(form).not.toMatch(/evil\.example/i);
  });
  it("carries no line that the shopper's name began", () => {
    const { text } = mailTo("Hana\r\n\r\nYour account is locked.\u2028Call us");
    expect(text.split("\n")[0]).toBe("Dear Hana Your account is locked. Call us,");
  });
  it("carries no link in the address either, which keeps its lines", () => {
    expect(mailTo("Hana", "1-1 Chiyoda\nhttps://evil.example/x").text).not.toMatch(/evil\.example/i);
  });
  it("names an ordinary name as it was given", () => {
    for (const name of ["山田 花", "J. R. R. Tolkien", "O'Neil-Søren", "St. Mary"])
      expect(mailTo(name).text).toContain(`Dear ${name},`);
  });
});
