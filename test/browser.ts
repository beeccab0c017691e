/**
 * A real Chromium over a real service, and what is looked at on every page: what its rules blocked, what it weighs, and
 * axe.
 */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { AxeResults } from "axe-core";
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect } from "vitest";
import type { SaleBody } from "../src/http/contract.ts";
import { api, op, useWorld } from "./world.ts";

export { api, op, world } from "./world.ts";

const PLACES = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];
/** CHROMIUM names another one. */
export const chromiumPath = [process.env.CHROMIUM ?? "", ...PLACES].find((path) => path !== "" && existsSync(path));
if (!chromiumPath)
  console.log(
    "The browser tests are skipped: there is no Chromium. apt-get install -y chromium, or set CHROMIUM to its path.",
  );

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

async function openBrowser(): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath as string, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}

async function visit(browser: Browser, baseUrl: string, options: BrowserContextOptions = {}): Promise<Visitor> {
  const context = await browser.newContext({ baseURL: baseUrl, locale: "en-US", viewport: PHONE, ...options });
  const complaints: string[] = [];
  const loads: Visitor["loads"] = [];
  await context.exposeFunction("complain", (what: string) => complaints.push(what));
  await context.addInitScript({
    content:
      "addEventListener('securitypolicyviolation', (e) => complain([e.violatedDirective, 'blocked', e.blockedURI, 'on', location.pathname].join(' ')))",
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
    .map(
      (v) => `${v.id} (${v.help}): ${v.nodes.map((n) => `${n.html.slice(0, 120)} ${n.failureSummary}`).join(" | ")}`,
    );
}

// ---- the stage of the browser tests: module state, since each test file is a process of its own ----

let browser: Browser;
let visitors: Visitor[] = [];

/** Servers, service and browser of a test file; after each test its pages must not have complained. */
export function useBrowser(): void {
  useWorld();
  beforeAll(async () => {
    browser = await openBrowser();
  });
  afterAll(() => browser?.close());
  afterEach(async () => {
    const complaints = visitors.flatMap((v) => v.complaints);
    await Promise.all(visitors.map((v) => v.context.close()));
    visitors = [];
    expect(complaints, "nothing was blocked by the pages' policy and no script threw").toEqual([]);
  });
}

export async function someone(options: Parameters<typeof visit>[2] & { at?: string } = {}): Promise<Visitor> {
  const { at, ...rest } = options;
  const visitor = await visit(browser, at ?? api.url, rest);
  visitor.page.setDefaultTimeout(20_000);
  visitors.push(visitor);
  return visitor;
}

const SHOP: SaleBody["shop"] = { name: { ja: "試験商店", en: "Test Shop" }, invoiceNumber: "T1234567890123" };
const TERMS: SaleBody["terms"] = {
  delivery: { ja: "七日以内に発送", en: "shipped within seven days" },
  cancellation: { ja: "返品はできません", en: "no returns" },
};
export async function saleWith(more: Partial<SaleBody> & { stock?: number } = {}): Promise<string> {
  const { stock = 10, ...sale } = more;
  const items = [{ sku: "bag", name: "福袋 Lucky bag", unitPrice: 5_000, stock }];
  return (
    await op.create({
      name: "福袋 New Year",
      holdMs: 600_000,
      shippingFee: 800,
      shop: SHOP,
      terms: TERMS,
      items,
      ...sale,
    })
  ).body.id;
}

export const shown = (page: Page, section: string) => page.waitForSelector(`#${section}:not([hidden])`);
export const buyButton = 'li[data-sku="bag"] button';
export const availability = (page: Page) => page.textContent("[data-availability]");

/** To the end of the first step: the bag is held. */
export async function hold(page: Page, saleId: string): Promise<void> {
  await page.goto(`/s/${saleId}`);
  await page.click(`${buyButton}:enabled`);
  await shown(page, "details");
}
export async function fillIn(page: Page, payment: { token?: string; gateway?: string } = {}): Promise<void> {
  await page.fill("#name", "山田 花");
  await page.fill("#email", "hana@example.jp");
  await page.fill("#address", "東京都渋谷区 1-2-3");
  if (payment.gateway) await page.check(`input[name="gateway"][value="${payment.gateway}"]`);
  else await page.selectOption("#token", payment.token ?? "tok_ok");
  await page.click('#details-form [type="submit"]');
  await shown(page, "review");
}
export async function pay(page: Page, payment: { token?: string; gateway?: string } = {}): Promise<void> {
  await fillIn(page, payment);
  await page.click("#pay");
}
export const orderIdOf = async (page: Page) => {
  await shown(page, "done");
  return (await page.textContent("#order-id")) as string;
};
export const held = async (saleId: string) =>
  (await op.sale(saleId)).items[0] as { free: number; held: number; sold: number; claimed: number };
