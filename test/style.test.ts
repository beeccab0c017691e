/**
 * How the sources are written, where no linter's rule says it. Function length is biome's
 * (noExcessiveLinesPerFunction).
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { describe, expect, it } from "vitest";
import { filesUnder, ROOT } from "./sources.ts";

const WIDTH = 120;
/** Tags of templates that hold SQL, which can be broken anywhere. */
const SQL_TAGS = new Set(["sql", "tx", "client"]);

const SCRIPTS = filesUnder("lua", /\.lua$/);
const SOURCES = ["src", "test", "bench"].flatMap((folder) => filesUnder(folder, /\.(ts|tsx|mjs)$/));
const parse = (path: string, text: string) => ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);

/**
 * Where texts stand that cannot be broken without changing them: strings, templates that are not SQL, regular
 * expressions.
 */
function unbreakable(source: ts.SourceFile): Array<{ from: number; to: number }> {
  const found: Array<{ from: number; to: number }> = [];
  const visit = (node: ts.Node): void => {
    const tag = ts.isTaggedTemplateExpression(node.parent ?? node)
      ? (node.parent as ts.TaggedTemplateExpression).tag.getText(source)
      : "";
    const isText = ts.isStringLiteralLike(node) || ts.isTemplateExpression(node) || ts.isJsxText(node);
    if ((isText && !SQL_TAGS.has(tag)) || ts.isRegularExpressionLiteral(node))
      found.push({ from: node.getStart(source), to: node.end });
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** Lines that are too long for no reason, as `path:line`. */
function tooLong(path: string, text: string): string[] {
  const texts = /\.lua$/.test(path) ? [] : unbreakable(parse(path, text));
  let at = 0;
  return text.split("\n").flatMap((line, i) => {
    const from = at;
    at += line.length + 1;
    if (line.length <= WIDTH || line.includes("://")) return [];
    const isComment = /^\s*(\/\/|\/\*|\*|--)/.test(line);
    const hasText = texts.some((t) => t.from < from + line.length && t.to > from);
    return !isComment && hasText ? [] : [`${path}:${i + 1}`];
  });
}

/**
 * Spreads of a literal into a literal, as `path:line`: they cost several times what one plain literal does
 * (bench/README.md).
 */
function spreadLiterals(path: string, text: string): string[] {
  const source = parse(path, text);
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isSpreadElement(node) || ts.isSpreadAssignment(node)) {
      let { expression } = node;
      while (ts.isParenthesizedExpression(expression) || ts.isAsExpression(expression)) ({ expression } = expression);
      const intoLiteral = ts.isObjectLiteralExpression(node.parent) || ts.isArrayLiteralExpression(node.parent);
      if (intoLiteral && (ts.isObjectLiteralExpression(expression) || ts.isArrayLiteralExpression(expression)))
        found.push(`${path}:${source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1}`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}
const inAll = (paths: string[], f: (path: string, text: string) => string[]) =>
  paths.flatMap((path) => f(path, readFileSync(join(ROOT, path), "utf8")));

describe("the sources", () => {
  it("have no line over 120 characters, but for addresses and texts that cannot be broken", () => {
    expect(inAll([...SOURCES, ...SCRIPTS], tooLong)).toEqual([]);
  });

  it("spread no literal into a literal", () => {
    expect(inAll(SOURCES, spreadLiterals)).toEqual([]);
  });

  it("would be caught otherwise", () => {
    const long = "word ".repeat(30);
    expect(tooLong("a.ts", `// ${long}\nconst a = 1;\n`)).toEqual(["a.ts:1"]);
    expect(tooLong("a.ts", `const q = sql\`select ${long}\`;`)).toEqual(["a.ts:1"]);
    expect(tooLong("a.ts", `const text = "${long}";`)).toEqual([]);
    expect(tooLong("a.lua", `-- ${long}`)).toEqual(["a.lua:1"]);
    expect(spreadLiterals("a.ts", "const a = { ...{ b, c }, d };\nf(...[1, 2]);\nconst e = { ...b };")).toEqual([
      "a.ts:1",
    ]);
  });
});
