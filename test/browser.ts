/** A real Chromium over a real service, and what is looked at on every page: what its rules blocked, what it weighs, and axe. */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { AxeResults } from "axe-core";
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"];
/** CHROMIUM names another one. */
export const chromiumPath = [process.env.CHROMIUM ?? "", ...PLACES].find((path) => path !== "" && existsSync(path));
if (!chromiumPath) console.log("The browser tests are skipped: there is no Chromium. apt-get install -y chromium, or set CHROMIUM to its path.");

export const PHONE = { width: 390, height: 844 };
export const DESKTOP = { width: 1280, height: 900 };
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export interface Visitor {
  context: BrowserContext;
  page: Page;
  /** What went wrong in any of its pages: blocked by the policy, thrown by a script. */
  complaints: string[];
  /** Bytes that each load of a page needed, as they are before compression. */
  loads: Array<{ path: string; bytes: number }>;
  /** Another tab of the same browser. */
  newTab(): Promise<Page>;
}

export async function openBrowser(): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath as string, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}

export async function visit(browser: Browser, baseUrl: string, options: BrowserContextOptions = {}): Promise<Visitor> {
  const context = await browser.newContext({ baseURL: baseUrl, locale: "en-US", viewport: PHONE, ...options });
  const complaints: string[] = [];
  const loads: Visitor["loads"] = [];
  await context.exposeFunction("complain", (what: string) => complaints.push(what));
  await context.addInitScript({
    content: "addEventListener('securitypolicyviolation', (e) => complain([e.violatedDirective, 'blocked', e.blockedURI, 'on', location.pathname].join(' ')))",
  });
  const watch = (page: Page) => {
    page.on("pageerror", (error) => complaints.push(String(error.stack)));
    let load = { path: "", bytes: 0 };
    page.on("request", (request) => {
      if (!request.isNavigationRequest() || request.frame() !== page.mainFrame()) return;
      load = { path: new URL(request.url()).pathname, bytes: 0 };
      loads.push(load);
    });
    page.on("response", async (response) => {
      if (!/^(document|script|stylesheet|image)$/.test(response.request().resourceType())) return;
      const of = load;
      const body = await response.body().catch(() => null);
      of.bytes += body?.length ?? 0;
    });
    return page;
  };
  const newTab = async () => watch(await context.newPage());
  return { context, page: await newTab(), complaints, loads, newTab };
}

/** Faults that axe calls serious or critical, each as one line. */
export async function seriousFaults(page: Page): Promise<string[]> {
  // Playwright's own evaluation is not under the page's policy.
  await page.evaluate(AXE);
  const found = (await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")) as AxeResults;
  return found.violations
    .filter((v) => v.impact === "serious" || v.impact === "critical")
    .map((v) => `${v.id} (${v.help}): ${v.nodes.map((n) => `${n.html.slice(0, 120)} ${n.failureSummary}`).join(" | ")}`);
}
