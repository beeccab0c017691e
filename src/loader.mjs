// Runs the TypeScript sources as they are: `node --import ./src/loader.mjs <file>`. Types are taken out as a file is
// loaded, and nothing is added: a loader that also names every closure, each time one is made, took a seventh of a
// reservation (bench/README.md).
import { readFile } from "node:fs/promises";
import { register } from "node:module";
import { isMainThread } from "node:worker_threads";

const TSCONFIG = {
  compilerOptions: { target: "ES2023", jsx: "react-jsx", jsxImportSource: "hono/jsx", verbatimModuleSyntax: true },
};
/** esbuild is a process of its own; it is ended when nothing was loaded for so long. */
const IDLE_MS = 1_000;

// Loaded twice: by the program, and by the thread in which node asks what a file is.
if (isMainThread) {
  process.setSourceMapsEnabled(true);
  register(import.meta.url);
}

let loading = 0;
let idle;
export async function load(url, context, nextLoad) {
  if (!/\.tsx?$/.test(url)) return nextLoad(url, context);
  const esbuild = await import("esbuild");
  clearTimeout(idle);
  loading++;
  try {
    const { code } = await esbuild.transform(await readFile(new URL(url), "utf8"), {
      loader: url.endsWith("x") ? "tsx" : "ts",
      sourcefile: url,
      sourcemap: "inline",
      sourcesContent: false,
      target: "node20",
      tsconfigRaw: TSCONFIG,
    });
    return { format: "module", source: code, shortCircuit: true };
  } finally {
    if (--loading === 0) idle = setTimeout(esbuild.stop, IDLE_MS).unref();
  }
}
