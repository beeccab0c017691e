#!/usr/bin/env node
// Runs the build in dist/. In a checkout it may be absent, or made from other sources than those that are there now:
// then the sources themselves run, so that old code never runs in silence. An installed package and the image have no
// sources but this file.
import { existsSync, readFileSync } from "node:fs";

const at = (path) => new URL(path, import.meta.url);
const built = existsSync(at("../dist/build.json"));
const checkout = existsSync(at("./main.ts"));

async function isFresh() {
  const { sourcesDigest } = await import("./sources.mjs");
  return JSON.parse(readFileSync(at("../dist/build.json"), "utf8")).sources === sourcesDigest();
}

function end(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}

if (built && (!checkout || (await isFresh()))) {
  await import("../dist/fukubukuro.js");
} else if (!checkout) {
  end("There is no dist/ in this installation: install it anew.");
} else {
  if (built) process.stderr.write("dist/ is not of these sources: the sources run instead (npm run build).\n");
  try {
    import.meta.resolve("esbuild");
  } catch {
    end("There is no build, and nothing to run the sources with: run npm ci and npm run build.");
  }
  await import("./loader.mjs");
  await import("./main.ts");
}
