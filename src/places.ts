/**
 * The one module that knows where things are. In a checkout the scripts and migrations lie beside src/, in a build
 * everything is in dist/; both are found upwards from this file, so that neither depends on which file or bundle asks.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const isRoot = (folder: string) => existsSync(join(folder, "lua", "prelude.lua"));

/** The checkout, or dist/. */
const ROOT = (() => {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (isRoot(folder)) return folder;
    if (folder === dirname(folder)) throw new Error("lua/ is missing: the installation is not whole");
  }
})();

const readJson = <T>(file: string) => JSON.parse(readFileSync(join(ROOT, file), "utf8")) as T;

/** Whether this is the build, which has everything made beforehand, or the sources. */
export const BUILT = existsSync(join(ROOT, "build.json"));

export const LUA_FOLDER = join(ROOT, "lua");
export const MIGRATIONS_FOLDER = join(ROOT, "drizzle");
/** What `npm run build` made for the pages; only in a build. */
export const ASSETS_FOLDER = join(ROOT, "assets");

export const version = () => readJson<{ version: string }>(BUILT ? "build.json" : "package.json").version;

/** The command that runs one of our TypeScript files as a program of its own; in a checkout alone. */
export const programOf = (file: URL, nodeOptions: string[] = []): string[] => [
  process.execPath,
  ...nodeOptions,
  "--import",
  pathToFileURL(join(ROOT, "src", "loader.mjs")).href,
  fileURLToPath(file),
];

/** The service as another process, by the same code that runs here. */
export const serviceProgram = (): string[] => [
  process.execPath,
  BUILT ? join(ROOT, "fukubukuro.js") : join(ROOT, "src", "fukubukuro.mjs"),
];

export const sandboxGatewayProgram = (): string[] =>
  BUILT
    ? [process.execPath, join(ROOT, "sandbox-gateway.js")]
    : programOf(pathToFileURL(join(ROOT, "src", "local", "sandbox-gateway.ts")));
