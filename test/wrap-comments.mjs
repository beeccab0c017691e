// Wraps comments that are too long for test/style.test.ts: `node test/wrap-comments.mjs <files>`. Only comments
// on lines of their own, and only those with a line over the limit; indented lines and lists stay as they are.
import { readFileSync, writeFileSync } from "node:fs";
import ts from "typescript";

const WIDTH = 120;

function fill(words, width) {
  const lines = [];
  for (const word of words) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Paragraphs are filled anew; empty, indented and listed lines are kept. */
function reflow(lines, width) {
  const out = [];
  let words = null;
  const end = () => {
    if (words) out.push(...fill(words, width));
    words = null;
  };
  for (const line of lines) {
    if (line.trim() === "" || /^(\s{2,}|[-*] |@|\d+\. )/.test(line)) {
      end();
      out.push(line.trimEnd());
    } else words = [...(words ?? []), ...line.trim().split(/ +/)];
  }
  end();
  return out;
}

function commentsOf(source, text) {
  const found = new Map();
  const visit = (node) => {
    const ranges = [
      ...(ts.getLeadingCommentRanges(text, node.getFullStart()) ?? []),
      ...(ts.getTrailingCommentRanges(text, node.getEnd()) ?? []),
    ];
    for (const r of ranges) found.set(r.pos, r);
    for (const child of node.getChildren(source)) if (!ts.isJsxText(child)) visit(child);
  };
  visit(source);
  return [...found.values()].sort((a, b) => a.pos - b.pos);
}

function wrapped(path, text) {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const indentOf = (pos) => text.slice(text.lastIndexOf("\n", pos - 1) + 1, pos);
  const comments = commentsOf(source, text).filter((c) => indentOf(c.pos).trim() === "");
  const edits = [];
  for (let i = 0; i < comments.length; i++) {
    const first = comments[i];
    const indent = indentOf(first.pos);
    let last = first;
    if (first.kind === ts.SyntaxKind.SingleLineCommentTrivia)
      // Neighbouring lines are one comment.
      while (comments[i + 1] && text.slice(last.end, comments[i + 1].pos) === `\n${indent}`) last = comments[++i];
    const body = text.slice(first.pos, last.end);
    if (Math.max(...(indent + body).split("\n").map((l) => l.length)) <= WIDTH) continue;
    const [open, lead, close] = body.startsWith("/*") ? ["/**\n", " * ", `\n${indent} */`] : ["", "// ", ""];
    const lines = body
      .replace(/^\/\*\*?|\*\/$/g, "")
      .split("\n")
      .map((l) => l.replace(/^\s*(\/\/|\*)? ?/, ""));
    const filled = reflow(lines, WIDTH - indent.length - lead.length)
      .join("\n")
      .trim()
      .split("\n");
    const start = open && indent;
    const joined = filled.map((l) => (lead + l).trimEnd()).join(`\n${indent}`);
    edits.push([first.pos, last.end, open + start + joined + close]);
  }
  return edits.reduceRight((t, [from, to, by]) => t.slice(0, from) + by + t.slice(to), text);
}

for (const path of process.argv.slice(2)) {
  const text = readFileSync(path, "utf8");
  const next = wrapped(path, text);
  if (next !== text) writeFileSync(path, next);
}
