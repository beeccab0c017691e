// `npm run build`: makes dist/, which runs without a compiler and without the packages that are built in.
// dist/build.json says of which sources it is; src/fukubukuro.mjs runs it only while they are those beside it.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import "./src/loader.mjs";
import { sourcesDigest } from "./src/sources.mjs";

const ROOT = fileURLToPath(new URL(".", import.meta.url));
const began = performance.now();
const manifest = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8"));
/** Sources may change while they are read: the build is of those that were there before. */
const sources = sourcesDigest();
const out = join(ROOT, `.dist-${process.pid}`);

/**
 * The service and the sandbox gateway. What is in package.json's dependencies stays a package of its own; what is in
 * devDependencies (ESM of hundreds of small files, whose opening took most of a start: bench/README.md) is built in.
 */
async function buildServer() {
  const outside = Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies });
  const { metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: { fukubukuro: "src/main.ts", "sandbox-gateway": "src/local/sandbox-gateway.ts" },
    inject: ["src/stack-traces.ts"],
    outdir: out,
    bundle: true,
    splitting: true,
    platform: "node",
    format: "esm",
    target: "node20.19",
    jsx: "automatic",
    jsxImportSource: "hono/jsx",
    // Names stay readable and nothing is added to keep them (see src/loader.mjs): not minified, and no keepNames.
    sourcemap: true,
    sourcesContent: false,
    external: [...outside.flatMap((name) => [name, `${name}/*`]), "./bundle-assets.ts"],
    metafile: true,
    logLevel: "warning",
  });
  return Object.keys(metafile.inputs);
}

async function buildAssets() {
  const { bundleAssets } = await import("./src/web/bundle-assets.ts");
  const listed = {};
  await mkdir(join(out, "assets"), { recursive: true });
  for (const [name, { file, type, body }] of Object.entries(await bundleAssets())) {
    await writeFile(join(out, "assets", file), body);
    listed[name] = { file, type };
  }
  await writeFile(join(out, "assets", "manifest.json"), JSON.stringify(listed, null, 2));
}

/** `fukubukuro/client` is the package of its own, copied. */
async function buildClient() {
  const tsc = join(ROOT, "node_modules", "typescript", "bin", "tsc");
  execFileSync(process.execPath, [tsc, "-p", join(ROOT, "src", "client")], { stdio: "inherit" });
  await cp(join(ROOT, "src", "client", "dist"), join(out, "client"), { recursive: true });
}

/** The licences of what is built in go where it goes. */
async function writeLicences(inputs) {
  const packages = new Set(
    inputs.map((f) => /^(node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(f)?.[1]).filter((name) => name !== undefined),
  );
  for (const name of ["node_modules/uplot", "node_modules/swagger-ui-dist"]) packages.add(name);
  const texts = [];
  for (const name of [...packages].sort()) {
    const { version, license } = JSON.parse(await readFile(join(ROOT, name, "package.json"), "utf8"));
    const file = (await readdir(join(ROOT, name))).find((f) => /^licen[cs]e/i.test(f));
    const text = file ? await readFile(join(ROOT, name, file), "utf8") : `https://spdx.org/licenses/${license}.html`;
    texts.push(`${name.slice("node_modules/".length)} ${version} (${license})\n\n${text.trim()}\n`);
  }
  await writeFile(join(out, "THIRD-PARTY.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
}

try {
  await mkdir(out);
  const inputs = await buildServer();
  await buildAssets();
  await buildClient();
  for (const folder of ["lua", "drizzle"]) await cp(join(ROOT, folder), join(out, folder), { recursive: true });
  await writeLicences(inputs);
  await writeFile(join(out, "build.json"), JSON.stringify({ version: manifest.version, sources }, null, 2));
  const dist = join(dirname(out), "dist");
  // The old one goes all at once, and what still runs from it has read what it needs.
  if (existsSync(dist)) await rename(dist, `${out}-old`);
  await rename(out, dist);
  console.log(`dist/ made in ${((performance.now() - began) / 1000).toFixed(1)} s`);
} finally {
  await rm(out, { recursive: true, force: true });
  await rm(`${out}-old`, { recursive: true, force: true });
}
