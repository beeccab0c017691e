/**
 * What comments and documents refer to exists: rules of the protocol, files, functions, tests, broken builds. And the
 * diagrams of docs/protocol.md are the tables of the lifecycle.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import ts from "typescript";
import { describe, expect, it } from "vitest";
import { LATE_STEPS, PAYMENT_TRANSITIONS, RESERVATION_TRANSITIONS } from "../src/domain/lifecycle.ts";
import { DEFECTS } from "./campaign/defects.ts";
import { commentsOf, filesUnder, ROOT } from "./sources.ts";

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const PROTOCOL = read("docs/protocol.md");
const SOURCES = ["src", "lua", "bench", "test"].flatMap((folder) => filesUnder(folder, /\.(ts|tsx|mjs|lua)$/));
const EVERY_FILE = [
  ...["src", "lua", "bench", "test", "docs", "drizzle", "packages"].flatMap((folder) => filesUnder(folder, /./)),
  ...readdirSync(ROOT).filter((f) => f.includes(".")),
];

/** Letter -> the text of its section. */
const rules = new Map(
  PROTOCOL.split(/^### (?=[A-Z]\. )/m)
    .slice(1)
    .map((section) => [section[0] as string, section.split(/^## /m)[0] as string]),
);

/** Letters of "rule A", "rules A and B", "rules C, D and E". */
function lettersIn(text: string): string[] {
  return [...text.matchAll(/\b[Rr]ules? ([A-Z](?:(?:, | and |, and | or )[A-Z])*)\b(?!-)/g)].flatMap((m) =>
    (m[1] as string).split(/, and |, | and | or /),
  );
}
const filesIn = (text: string) =>
  [...text.matchAll(/(?<![\w/.@:*~-])(?:[\w.-]+\/)*[\w-][\w.-]*\.(?:tsx?|mjs|lua|md|sql|ya?ml)(?![\w-])/g)].map(
    (m) => m[0],
  );
const found = (named: string, from: string) => {
  const file = named.replace(/^\.\//, "");
  return existsSync(join(ROOT, dirname(from), file)) || EVERY_FILE.some((f) => f === file || f.endsWith(`/${file}`));
};

describe("a comment", () => {
  const comments = SOURCES.map((path) => ({ path, text: commentsOf(path).join("\n") }));

  it("that cites a rule cites one that docs/protocol.md has", () => {
    const missing = comments.flatMap(({ path, text }) =>
      lettersIn(text).flatMap((letter) => (rules.has(letter) ? [] : [`${path}: rule ${letter}`])),
    );
    expect(missing).toEqual([]);
  });

  it("that cites a promise cites one of P1 to P8", () => {
    const missing = comments.flatMap(({ path, text }) =>
      [...text.matchAll(/\bP(\d+)\b/g)].flatMap((m) => (/^[1-8]$/.test(m[1] as string) ? [] : [`${path}: ${m[0]}`])),
    );
    expect(missing).toEqual([]);
  });

  it("that names a file names one that is there", () => {
    const missing = comments.flatMap(({ path, text }) =>
      filesIn(text).flatMap((file) => (found(file, path) ? [] : [`${path}: ${file}`])),
    );
    expect(missing).toEqual([]);
  });

  it("that leads to a heading of a document leads to one that is there", () => {
    const missing = comments.flatMap(({ path, text }) =>
      [...text.matchAll(/(docs\/[\w.-]+\.md)#([\w-]+)/g)].flatMap(([cited, file = "", anchor = ""]) =>
        anchorsOf(read(file)).includes(anchor) ? [] : [`${path}: ${cited}`],
      ),
    );
    expect(missing).toEqual([]);
  });

  it("would be caught: these citations lead nowhere", () => {
    expect(lettersIn("as rules A, B and P say; Rule Z, too").map((l) => rules.has(l))).toEqual([
      true,
      true,
      false,
      false,
    ]);
    expect(filesIn("see facts.md, stores/redis.ts or `lua/nowhere.lua`").map((f) => found(f, "src/app.ts"))).toEqual([
      false,
      true,
      false,
    ]);
    expect(anchorsOf("## Two words\n")).toEqual(["two-words"]);
  });
});

const anchorsOf = (md: string) =>
  [...md.matchAll(/^#+ (.*)$/gm)].map((m) =>
    (m[1] as string)
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replace(/ /g, "-"),
  );

/** Names that a TypeScript file declares: functions, constants, methods, properties that are functions, classes. */
function declared(path: string): Set<string> {
  const text = read(path);
  if (!/\.tsx?$/.test(path)) return new Set(text.match(/[A-Za-z_]\w*/g));
  const names = new Set<string>();
  const visit = (node: ts.Node): void => {
    const { name } = node as ts.NamedDeclaration;
    if (name && ts.isIdentifier(name) && !ts.isParameter(node)) names.add(name.text);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true));
  return names;
}

/** Names of the tests of a file. */
function testsOf(path: string): Set<string> {
  const names = new Set<string>();
  const visit = (node: ts.Node): void => {
    if (ts.isCallExpression(node)) {
      const [name] = node.arguments;
      const callee = ts.isCallExpression(node.expression) ? node.expression.expression : node.expression;
      if (name && ts.isStringLiteralLike(name) && /^(it|test)\b/.test(callee.getText())) names.add(name.text);
    }
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(path, read(path), ts.ScriptTarget.Latest, true));
  return names;
}

/** `file`: "a test", "another"; `file`: "a third" */
function citedTests(text: string): Array<[file: string, name: string]> {
  return [...text.matchAll(/`(test\/[^`]+)`: ((?:"[^"]+"(?:, )?)+)/g)].flatMap(([, file = "", names = ""]) =>
    [...names.matchAll(/"([^"]+)"/g)].map((m): [string, string] => [file, m[1] as string]),
  );
}
const lineOf = (section: string, word: string) => new RegExp(`^- ${word}: (.*)$`, "m").exec(section)?.[1] ?? "";

describe("docs/protocol.md", () => {
  it.each([...rules])("rule %s names code, tests and broken builds that exist", (_, section) => {
    const code = lineOf(section, "Code").split("; ");
    for (const part of code) {
      const [file = "", ...names] = [...part.matchAll(/`([^`]+)`/g)].map((m) => m[1] as string);
      expect(existsSync(join(ROOT, file)), `no file ${file}`).toBe(true);
      expect(names, `${file}: which function?`).not.toEqual([]);
      for (const name of names) expect(declared(file), `${file} has no ${name}`).toContain(name);
    }
    const tests = citedTests(lineOf(section, "Test"));
    expect(tests).not.toEqual([]);
    for (const [file, name] of tests) expect(testsOf(file), `${file} has no such test`).toContain(name);
    const builds = [...lineOf(section, "Broken builds").matchAll(/"([^"]+)"/g)].map((m) => m[1]);
    expect(builds).not.toEqual([]);
    for (const name of builds) expect(DEFECTS.map((d) => d.name)).toContain(name);
  });

  it("every broken build that is named after a rule stands with that rule", () => {
    for (const { name } of DEFECTS)
      for (const letter of lettersIn(name)) expect(rules.get(letter), name).toContain(`"${name}"`);
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 8])("promise P%i names a mechanism and tests that exist", (n) => {
    const [, , , mechanism = "", tests = ""] =
      new RegExp(`^\\| P${n} \\|.*$`, "m").exec(PROTOCOL)?.[0].split("|") ?? [];
    expect(mechanism).not.toBe("");
    for (const [, name = "", file = ""] of mechanism.matchAll(/`(\w+)` in `([^`]+)`/g))
      expect(declared(file), `${file} has no ${name}`).toContain(name);
    expect(citedTests(tests)).not.toEqual([]);
    for (const [file, name] of citedTests(tests)) expect(testsOf(file), file).toContain(name);
  });

  /** The steps of the diagram under a heading. */
  function diagram(heading: string): Array<{ from: string; to: string; late: boolean }> {
    const text = new RegExp(`### ${heading}\\n[\\s\\S]*?\`\`\`mermaid\\n([\\s\\S]*?)\`\`\``).exec(PROTOCOL)?.[1] ?? "";
    return [...text.matchAll(/^ {2}(\w+) --> (\w+)(?:: (.*))?$/gm)].map(([, from = "", to = "", label = ""]) => ({
      from,
      to,
      late: label.startsWith("late money"),
    }));
  }
  const stepsOf = (table: Partial<Record<string, readonly string[]>>) =>
    Object.entries(table)
      .flatMap(([from, to]) => (to ?? []).map((t) => `${from} --> ${t}`))
      .sort();
  const drawn = (heading: string, late: boolean) =>
    diagram(heading)
      .filter((s) => s.late === late)
      .map(({ from, to }) => `${from} --> ${to}`)
      .sort();

  it("draws a reservation's steps as the lifecycle has them", () => {
    expect(drawn("A reservation", false)).toEqual(stepsOf(RESERVATION_TRANSITIONS));
  });
  it("draws a payment's steps as the lifecycle has them, late money included", () => {
    expect(drawn("A payment", false)).toEqual(stepsOf(PAYMENT_TRANSITIONS));
    expect(drawn("A payment", true)).toEqual(stepsOf(LATE_STEPS));
  });
});
