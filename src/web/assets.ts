/**
 * Scripts, styles and pictures of the pages: bundled once by esbuild when the first is asked for, under names that
 * change with their content.
 */
import { hash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { build, stop } from "esbuild";

export interface Asset {
  body: string;
  type: string;
  /** Where it is served, with its content's digest. */
  path: string;
}
export type AssetName = "shop.js" | "order.js" | "cockpit.js" | "new-sale.js" | "style.css" | "bag.svg";
export type Assets = Record<AssetName, Asset>;

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const TYPES = { js: "text/javascript; charset=utf-8", css: "text/css; charset=utf-8", svg: "image/svg+xml" };

async function make(): Promise<Assets> {
  const built = await build({
    entryPoints: ["shop", "order", "cockpit", "new-sale"].map((name) => here(`./browser/${name}.ts`)),
    outdir: "/",
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    target: "es2022",
    // What is not ASCII stays as it is: the files are UTF-8 and say so.
    charset: "utf8",
    tsconfig: here("./browser/tsconfig.json"),
  });
  await stop();
  const uplot = await readFile(createRequire(import.meta.url).resolve("uplot/dist/uPlot.min.css"), "utf8");
  const scriptOf = (name: string) => built.outputFiles.find((f) => f.path.endsWith(`/${name}`))?.text ?? "";
  const asset = (name: AssetName, body: string): Asset => {
    const [stem, ending] = name.split(".") as [string, keyof typeof TYPES];
    return {
      body,
      type: TYPES[ending],
      path: `/assets/${stem}-${hash("sha1", body, "base64url").slice(0, 10)}.${ending}`,
    };
  };
  return {
    "shop.js": asset("shop.js", scriptOf("shop.js")),
    "order.js": asset("order.js", scriptOf("order.js")),
    "cockpit.js": asset("cockpit.js", scriptOf("cockpit.js")),
    "new-sale.js": asset("new-sale.js", scriptOf("new-sale.js")),
    "style.css": asset("style.css", `${uplot}\n${await readFile(here("./style.css"), "utf8")}`),
    "bag.svg": asset("bag.svg", await readFile(here("./bag.svg"), "utf8")),
  };
}

let making: Promise<Assets> | undefined;
export function assets(): Promise<Assets> {
  making ??= make().catch((error) => {
    making = undefined;
    throw error;
  });
  return making;
}
