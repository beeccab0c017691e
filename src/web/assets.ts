/**
 * Scripts, styles and pictures of the pages, under names that change with their content: read from the build, or
 * bundled once in a checkout.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ASSETS_FOLDER, BUILT } from "../places.ts";
import type { AssetName } from "./bundle-assets.ts";

export interface Asset {
  type: string;
  /** Where it is served, with its content's digest. */
  path: string;
  body(): Promise<string | Buffer>;
}
export type Assets = Record<AssetName, Asset>;
/** assets/manifest.json of a build. */
export type Manifest = Record<AssetName, { file: string; type: string }>;

const served = (made: Manifest, bodyOf: (name: AssetName, file: string) => Promise<string | Buffer>): Assets => {
  const all = Object.entries(made).map(([name, { file, type }]) => [
    name,
    { type, path: `/assets/${file}`, body: () => bodyOf(name as AssetName, file) } satisfies Asset,
  ]);
  return Object.fromEntries(all) as Assets;
};

async function builtAssets(): Promise<Assets> {
  const manifest = JSON.parse(await readFile(join(ASSETS_FOLDER, "manifest.json"), "utf8")) as Manifest;
  return served(manifest, (_, file) => readFile(join(ASSETS_FOLDER, file)));
}

async function bundledAssets(): Promise<Assets> {
  const { bundleAssets } = await import("./bundle-assets.ts");
  const bundled = await bundleAssets();
  return served(bundled, async (name) => bundled[name].body);
}

let making: Promise<Assets> | undefined;
export function assets(): Promise<Assets> {
  making ??= (BUILT ? builtAssets() : bundledAssets()).catch((error) => {
    making = undefined;
    throw error;
  });
  return making;
}
