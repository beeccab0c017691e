/**
 * Stack traces of a build name the file, line and function of the sources. Node's own --enable-source-maps reads the
 * map of every package as it is loaded, which was a third of the time to start (bench/README.md); here the one map is
 * read when the first trace is.
 */
import { existsSync, readFileSync } from "node:fs";
import { SourceMap, type SourceMapPayload } from "node:module";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const FOLDER = dirname(fileURLToPath(import.meta.url));
const maps = new Map<string, SourceMap | null>();

function mapOf(file: string): SourceMap | null {
  let map = maps.get(file);
  if (map === undefined) {
    const path = `${file}.map`;
    map = existsSync(path) ? new SourceMap(JSON.parse(readFileSync(path, "utf8")) as SourceMapPayload) : null;
    maps.set(file, map);
  }
  return map;
}

/** `src/stages/pay.ts:57:3` for a place in the build; null for any other. */
function sourceOf(frame: NodeJS.CallSite): string | null {
  const url = frame.getFileName();
  if (!url?.startsWith("file:")) return null;
  const file = fileURLToPath(url);
  const entry =
    dirname(file) === FOLDER &&
    mapOf(file)?.findEntry((frame.getLineNumber() ?? 1) - 1, (frame.getColumnNumber() ?? 1) - 1);
  if (!entry || !("originalSource" in entry)) return null;
  const path = relative(dirname(FOLDER), join(FOLDER, entry.originalSource));
  return `${path}:${entry.originalLine + 1}:${entry.originalColumn + 1}`;
}

function lineOf(frame: NodeJS.CallSite): string {
  const text = String(frame);
  try {
    const source = sourceOf(frame);
    const place = `${frame.getFileName()}:${frame.getLineNumber()}:${frame.getColumnNumber()}`;
    return source === null ? text : text.replace(place, source);
  } catch {
    // A trace must never be the reason that the error it belongs to is lost.
    return text;
  }
}

Error.prepareStackTrace = (error, frames) =>
  [Error.prototype.toString.call(error), ...frames.map((f) => `    at ${lineOf(f)}`)].join("\n");
