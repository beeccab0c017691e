// The digest of everything that a build is made of: src/fukubukuro.mjs runs dist/ only while it is that of the sources
// beside it.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PARTS = ["build.mjs", "package.json", "package-lock.json", "tsconfig.json", "src", "lua", "drizzle"];
/** Made from the others, or never part of a build. */
const LEFT_OUT = new Set(["dist", "node_modules", ".DS_Store"]);

/** @returns {string} */
export function sourcesDigest() {
  const digest = createHash("sha1");
  const take = (path, isFolder) => {
    if (!isFolder)
      return digest
        .update(`${path}\n`)
        .update(readFileSync(ROOT + path))
        .update("\n");
    const entries = readdirSync(ROOT + path, { withFileTypes: true }).filter((e) => !LEFT_OUT.has(e.name));
    for (const e of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) take(`${path}/${e.name}`, e.isDirectory());
  };
  for (const part of PARTS) take(part, !part.includes("."));
  return digest.digest("hex");
}
