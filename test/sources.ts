/** The sources as text, for the tests that hold comments and style. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** Files under a folder of the repository whose path fits, as paths from the root. */
export function filesUnder(folder: string, fits: RegExp): string[] {
  const at = join(ROOT, folder);
  if (!statSync(at, { throwIfNoEntry: false })) return [];
  return (readdirSync(at, { recursive: true }) as string[])
    .map((f) => join(folder, f))
    .filter((f) => fits.test(f) && !/(^|\/)(node_modules|dist)\//.test(f) && !/^bench\/results\//.test(f))
    .filter((f) => statSync(join(ROOT, f)).isFile())
    .sort();
}

/** Every comment of a file. */
export function commentsOf(path: string): string[] {
  const text = readFileSync(join(ROOT, path), "utf8");
  if (path.endsWith(".lua")) return [...text.matchAll(/--.*$/gm)].map((m) => m[0]);
  const found = new Map<number, string>();
  const collect = (ranges: ts.CommentRange[] | undefined) => {
    for (const r of ranges ?? []) found.set(r.pos, text.slice(r.pos, r.end));
  };
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const visit = (node: ts.Node): void => {
    collect(ts.getLeadingCommentRanges(text, node.getFullStart()));
    collect(ts.getTrailingCommentRanges(text, node.getEnd()));
    for (const child of node.getChildren(source)) if (!ts.isJsxText(child)) visit(child);
  };
  visit(source);
  return [...found.values()];
}
