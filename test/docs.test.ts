/**
 * The docs are true: links lead somewhere, examples run, and alerts and dashboard name metrics that the service really
 * has.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { shopperAuth, signShopperToken } from "../src/http/auth.ts";
import { operator, SECRET, shopper, until } from "./support.ts";
import { api, useWorld } from "./world.ts";

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PAGES = [
  "README.md",
  "README.ja.md",
  "CONTRIBUTING.md",
  "CHANGELOG.md",
  "bench/README.md",
  "docs/integration.md",
  "docs/handbook.md",
  "docs/failures.md",
  "docs/handbook.ja.md",
  "docs/failures.ja.md",
  "docs/reference.md",
  "docs/protocol.md",
  "docs/measurements.md",
  "docs/decisions.md",
];
const read = (path: string) => readFile(join(ROOT, path), "utf8");

useWorld();
let saleId: string;
beforeAll(async () => {
  saleId = (await operator(api.url).create({ items: [{ sku: "bag", name: "Bag", unitPrice: 1000, stock: 10 }] })).body
    .id;
});

describe("every link", () => {
  it.each(PAGES)("of %s leads to a file or heading that is there", async (page) => {
    const text = await read(page);
    // GitHub's way of making an anchor of a heading.
    const anchors = (md: string) =>
      [...md.matchAll(/^#+ (.*)$/gm)].map(
        (m) =>
          `#${(m[1] as string)
            .toLowerCase()
            .replace(/[^\p{L}\p{N} _-]/gu, "")
            .replace(/ /g, "-")}`,
      );
    for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue;
      const [file = "", anchor] = target.split("#");
      const path = file === "" ? join(ROOT, page) : resolve(join(ROOT, dirname(page)), file);
      expect(existsSync(path), `${page}: ${target}`).toBe(true);
      if (anchor !== undefined)
        expect(anchors(await readFile(path, "utf8")), `${page}: ${target}`).toContain(`#${anchor}`);
    }
  });

  it("to a test in the table of failures is a test", async () => {
    const named = [...(await read("docs/failures.md")).matchAll(/`(test\/[^`]+)`/g)].map((m) => m[1] as string);
    expect(named.length).toBeGreaterThan(10);
    for (const path of named) expect(existsSync(join(ROOT, path)), path).toBe(true);
  });
});

/** The code block after `<!-- tested: name -->`. */
async function example(name: string): Promise<string> {
  const found = new RegExp(`<!-- tested: ${name.replace(".", "\\.")} -->\\n\`\`\`\\w+\\n([\\s\\S]*?)\`\`\``).exec(
    await read("docs/integration.md"),
  );
  expect(found, name).not.toBeNull();
  return found?.[1] as string;
}

describe("the examples of the integration guide", () => {
  const env = (customer: string) => ({
    ...process.env,
    FUKUBUKURO_URL: api.url,
    SALE: saleId,
    SHOPPER_TOKEN: signShopperToken(SECRET, customer, 600_000),
  });

  it("in JavaScript buys a bag through the package", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-docs-"));
    await mkdir(join(folder, "node_modules"));
    await symlink(join(ROOT, "src/client"), join(folder, "node_modules", "fukubukuro-client"));
    await writeFile(join(folder, "buy.mjs"), await example("buy.mjs"));
    const { stdout } = await run(process.execPath, ["buy.mjs"], { cwd: folder, env: env("js") });
    expect(stdout.trim()).toBe("confirmed 1000 JPY");
    await rm(folder, { recursive: true, force: true });
  });

  it("by curl buys a bag", async () => {
    const { stdout } = await run("sh", ["-c", await example("buy.sh")], { env: env("curl") });
    expect(JSON.parse(stdout)).toMatchObject({ status: "confirmed", orderId: expect.stringMatching(/^ord_/) });
  });

  it("in PHP makes a token that is taken", async ({ skip }) => {
    const php = await run("php", ["--version"]).catch(() => null);
    if (!php) skip("there is no PHP on this machine");
    const program = `${await example("token.php")}\ndefine('FUKUBUKURO_SECRET', '${SECRET}');\necho fukubukuro_token('wp-7');`;
    const { stdout } = await run("php", ["-r", program.replace(/^<\?php/, "")]);
    expect(shopperAuth([SECRET])(`Bearer ${stdout.trim()}`)).toBe("wp-7");
  });
});

describe("alerts and dashboard", () => {
  const SUFFIX = /_(bucket|count|sum)$/;

  /** Name, and label matchers and groupings, of what an expression reads. */
  function namesOf(expr: string): Array<{ name: string; labels: Array<[label: string, value: string | null]> }> {
    const grouped = [...expr.matchAll(/by \(([^)]*)\)/g)].flatMap((m) =>
      (m[1] as string).split(",").map((l) => l.trim()),
    );
    return [...expr.matchAll(/(fukubukuro_\w+)(?:\{((?:"[^"]*"|[^}"])*)\})?/g)].map(([, name = "", matchers = ""]) => ({
      name,
      labels: [
        ...[...matchers.matchAll(/(\w+)(=~|!=|!~|=)"([^"]*)"/g)].map(
          ([, label = "", operator, value = ""]): [string, string | null] => [label, operator === "=" ? value : null],
        ),
        ...grouped.filter((l) => l !== "le").map((l): [string, null] => [l, null]),
      ],
    }));
  }

  /** What a service really shows, after one order and one audit. */
  async function shown(): Promise<string> {
    const s = shopper(api.url, "metered");
    const { id } = (await s.reserve(saleId, "k")).body;
    await s.confirm(id);
    return until(
      "the gauges",
      async () => {
        const text = await (await fetch(`${api.url}/metrics`)).text();
        return (
          text.includes("fukubukuro_books_ok{") &&
          text.includes("fukubukuro_gateway_call_seconds_count{") &&
          text.includes("fukubukuro_mails_total{") &&
          text
        );
      },
      40_000,
    );
  }

  it("name only metrics, labels and values that exist", async () => {
    const rules = parse(await read("docs/alerts.yml")) as {
      groups: Array<{ rules: Array<{ alert: string; expr: string; annotations: { summary: string; do: string } }> }>;
    };
    const alerts = rules.groups.flatMap((g) => g.rules);
    const dashboard = JSON.parse(await read("docs/grafana.json")) as {
      panels: Array<{ title: string; targets: Array<{ expr: string }> }>;
      templating: { list: Array<{ query: string }> };
    };
    const exprs = [
      ...alerts.map((r) => r.expr),
      ...dashboard.panels.flatMap((p) => p.targets.map((t) => t.expr)),
      ...dashboard.templating.list.map((t) => t.query).filter((q) => q.startsWith("label_values")),
    ];
    expect(exprs.length).toBeGreaterThan(30);
    for (const a of alerts) expect(a.annotations.do, a.alert).toBeTruthy();
    const text = await shown();
    const types = new Set([...text.matchAll(/^# TYPE (\w+)/gm)].map((m) => m[1] as string));
    const registry = api.service.ctx.metrics.registry;
    const source = (
      await Promise.all(
        (
          await readdir(join(ROOT, "src"), { recursive: true })
        )
          .filter((f) => f.endsWith(".ts"))
          .map((f) => read(join("src", f))),
      )
    ).join("\n");
    for (const expr of exprs) {
      for (const { name, labels } of namesOf(expr)) {
        const metric = name.replace(SUFFIX, "");
        expect(types.has(name) || types.has(metric), `${name} in ${expr}`).toBe(true);
        const known = (registry.getSingleMetric(metric) as unknown as { labelNames: string[] }).labelNames;
        for (const [label, value] of labels) {
          expect(known, `${label} of ${name} in ${expr}`).toContain(label);
          if (value !== null && !text.includes(`${label}="${value}"`))
            expect(source, `${label}="${value}" in ${expr}`).toMatch(new RegExp(`["'\`]?${value}["'\`]?`));
        }
      }
    }
  });

  it("would notice a metric that does not exist", () => {
    expect(namesOf('sum by (sale) (rate(fukubukuro_open{kind="unknown",sale=~"$sale"}[1m]))')).toEqual([
      {
        name: "fukubukuro_open",
        labels: [
          ["kind", "unknown"],
          ["sale", null],
          ["sale", null],
        ],
      },
    ]);
  });
});
