/**
 * Makes the scripts, styles and pictures of the pages with esbuild: for `npm run build`, and in a checkout when the
 * first is asked for.
 */
import { hash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { build, stop } from "esbuild";

export type AssetName =
  | "shop.js"
  | "order.js"
  | "cockpit.js"
  | "new-sale.js"
  | "style.css"
  | "bag.svg"
  | "swagger-ui.css"
  | "swagger-ui-bundle.js"
  | "favicon-32x32.png";

export interface BundledAsset {
  /** Its name with its content's digest. */
  file: string;
  type: string;
  body: string | Buffer;
}

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const TYPES = {
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml",
  png: "image/png",
};

async function bundleScripts(): Promise<Map<string, string>> {
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
  return new Map(built.outputFiles.map((f) => [f.path.slice(1), f.text]));
}

export async function bundleAssets(): Promise<Record<AssetName, BundledAsset>> {
  const scripts = await bundleScripts();
  const require = createRequire(import.meta.url);
  const uplot = await readFile(require.resolve("uplot/dist/uPlot.min.css"), "utf8");
  const asset = (name: AssetName, body: string | Buffer): BundledAsset => {
    const [stem, ending] = name.split(".") as [string, keyof typeof TYPES];
    return { file: `${stem}-${hash("sha1", body, "base64url").slice(0, 10)}.${ending}`, type: TYPES[ending], body };
  };
  const script = (name: AssetName) => asset(name, scripts.get(name) ?? "");
  const swagger = async (name: AssetName) => asset(name, await readFile(require.resolve(`swagger-ui-dist/${name}`)));
  return {
    "shop.js": script("shop.js"),
    "order.js": script("order.js"),
    "cockpit.js": script("cockpit.js"),
    "new-sale.js": script("new-sale.js"),
    "style.css": asset("style.css", `${uplot}\n${await readFile(here("./style.css"), "utf8")}`),
    "bag.svg": asset("bag.svg", await readFile(here("./bag.svg"))),
    "swagger-ui.css": await swagger("swagger-ui.css"),
    "swagger-ui-bundle.js": await swagger("swagger-ui-bundle.js"),
    "favicon-32x32.png": await swagger("favicon-32x32.png"),
  };
}
