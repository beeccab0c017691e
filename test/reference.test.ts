/** The reference is true, and the pages in two languages tell the same. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PROBLEMS, type ProblemCode } from "../src/http/problem.ts";
import { ROOT } from "./sources.ts";

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const REFERENCE = read("docs/reference.md");

/** The rows of the table under a heading, as cells. */
function tableUnder(text: string, heading: string): string[][] {
  const section = text.split(`\n## ${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  return [...section.matchAll(/^\|( `.*)\|$/gm)].map((m) =>
    (m[1] as string).split("|").map((cell) => cell.trim().replace(/^`|`$/g, "")),
  );
}

describe("docs/reference.md", () => {
  it("has every code, each with its status and whether it may be repeated", () => {
    const said = tableUnder(REFERENCE, "Codes").map(([code, status, again]) => [code, status, again]);
    const made = (Object.keys(PROBLEMS) as ProblemCode[]).map((code) => {
      const { status, retry } = PROBLEMS[code];
      return [code, String(status), retry ? "yes" : "no"];
    });
    expect(said.sort()).toEqual(made.sort());
  });

  it("has every setting, and the default of each that has a plain one", () => {
    const config = read("src/config.ts");
    const settings = [...config.matchAll(/^ {2}([A-Z][A-Z_]+): ([\s\S]*?),\n(?= {2}[A-Z]|\}\))/gm)];
    const said = new Map(tableUnder(REFERENCE, "Configuration").map(([name = "", value = ""]) => [name, value]));
    expect([...said.keys()].sort()).toEqual(settings.map((m) => m[1]).sort());
    let compared = 0;
    for (const [, name = "", text = ""] of settings) {
      const value =
        /^whole(?:Ms)?\(([\d_]+)/.exec(text)?.[1]?.replaceAll("_", "") ?? /default\("([^"]+)"/.exec(text)?.[1];
      if (value === undefined) continue;
      compared++;
      expect(said.get(name), name).toBe(value);
    }
    expect(compared).toBeGreaterThan(20);
  });

  it("names every command", () => {
    const commands = [...read("src/main.ts").matchAll(/\.command\("([\w-]+)"\)/g)].map((m) => m[1]);
    expect(commands.length).toBeGreaterThan(6);
    for (const command of commands)
      expect(REFERENCE.split("## Commands")[1]).toMatch(new RegExp(`\`(sale )?${command}[\` ]`));
  });
});

describe("in two languages", () => {
  const headings = (text: string) => [...text.replace(/```[\s\S]*?```/g, "").matchAll(/^(#+) /gm)].map((m) => m[1]);
  const rows = (text: string) => text.match(/^\|.*\|$/gm)?.length;
  const boxes = (text: string) => text.match(/^- \[ \]/gm)?.length;

  it.each([
    ["README.md", "README.ja.md"],
    ["docs/handbook.md", "docs/handbook.ja.md"],
    ["docs/failures.md", "docs/failures.ja.md"],
  ])("%s and %s have the same headings, table rows and boxes to tick", (one, other) => {
    const [a, b] = [read(one), read(other)];
    expect(headings(b)).toEqual(headings(a));
    expect(rows(b)).toBe(rows(a));
    expect(boxes(b)).toBe(boxes(a));
    expect(rows(a)).toBeGreaterThan(5);
  });

  it("each names the tests that show a failure", () => {
    const tests = (path: string) => read(path).match(/`test\/[^`]+`/g);
    expect(tests("docs/failures.ja.md")).toEqual(tests("docs/failures.md"));
  });
});
