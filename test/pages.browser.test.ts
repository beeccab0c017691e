/**
 * What every page must keep: no serious fault that axe knows, no wider than the screen, light, nothing from elsewhere.
 */
import { mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { randomOf } from "../src/local/random.ts";
import {
  api,
  buyButton,
  chromiumPath,
  DESKTOP,
  fillIn,
  op,
  orderIdOf,
  PHONE,
  saleWith,
  seriousFaults,
  shown,
  someone,
  useBrowser,
} from "./browser.ts";
import { ADMIN_TOKEN, pause, shopper, until } from "./support.ts";

const PAGE_BYTES_MAX = 100_000;
/** SCREENSHOTS=1: pictures of every page for the README, under docs/images. */
const IMAGES = process.env.SCREENSHOTS ? fileURLToPath(new URL("../docs/images/", import.meta.url)) : null;

/** Something to see in the cockpit's picture. */
async function smallRush(saleId: string): Promise<void> {
  await op.topUp(saleId, 40, "rush");
  const shop = async (n: number) => {
    await pause(randomOf(0, `rush-${n}`)() * 6_000);
    const s = shopper(api.url, `rush-${n}`);
    const { status, body } = await s.reserve(saleId, "k");
    if (status === 201 && n % 6 > 0)
      await s.confirm(body.id, n % 3 === 0 ? { gateway: "cod" } : { token: n % 16 === 1 ? "tok_slow" : "tok_ok" }, {
        waitS: 1,
      });
  };
  await Promise.all(Array.from({ length: 90 }, (_, n) => shop(n)));
}

describe.skipIf(!chromiumPath)("in a browser", () => {
  useBrowser();

  describe.each(["ja-JP", "en-US"])("every page in %s", (locale) => {
    it.each([
      ["phone", PHONE],
      ["desktop", DESKTOP],
    ])("on a %s has no serious fault that axe knows, fits the screen and is light", async (device, viewport) => {
      const visitor = await someone({ locale, viewport });
      const { page, loads } = visitor;
      const saleId = await saleWith({ name: locale === "ja-JP" ? "新春福袋 2027" : "New Year lucky bags 2027" });
      const faults: string[] = [];
      const check = async (name: string) => {
        // Letters have to be drawn before a picture is taken or contrast is measured.
        await page.evaluate("document.fonts.ready");
        for (const fault of await seriousFaults(page)) faults.push(`${name}: ${fault}`);
        const wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth");
        if (Number(wide) > 0) faults.push(`${name}: ${wide} px wider than the screen`);
        if (!IMAGES) return;
        await mkdir(IMAGES, { recursive: true });
        await page.screenshot({
          path: `${IMAGES}${name}-${locale.slice(0, 2)}-${device}.png`,
          fullPage: name !== "ask" && name !== "mails",
        });
      };
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      await check("shop");
      await page.click(buyButton);
      await shown(page, "details");
      await check("details");
      await fillIn(page, { token: "tok_slow" });
      await check("review");
      await page.click("#pay");
      await shown(page, "paying");
      await check("paying");
      await orderIdOf(page);
      await check("done");
      await page.click("#to-order");
      await page.waitForSelector("#order-lines tr");
      await check("order");
      await page.goto("/mails");
      await check("mails");
      await page.click("tbody a");
      await page.waitForSelector("iframe");
      await check("mail");
      await page.goto(`/mails/preview/${saleId}`);
      await check("mail-preview");
      await page.goto("/admin");
      await check("sign-in");
      await page.fill("#token", ADMIN_TOKEN);
      await page.click('main button[type="submit"]');
      await page.goto(`/admin?sale=${saleId}`);
      await until("the lights", async () => (await page.$$('.light[data-state="ok"]')).length === 3);
      if (IMAGES) await smallRush(saleId);
      await check("cockpit");
      await page.click('[data-top-up="bag"]');
      await check("ask");
      await page.goto("/admin/new");
      await page.waitForSelector("#sku-1");
      await check("new-sale");
      await page.goto(`/admin/sales/${saleId}/certificate`);
      await check("certificate");
      expect(faults).toEqual([]);
      console.log(loads.map(({ path, bytes }) => `${path.replace(saleId, "…")} ${bytes}`).join(", "));
      const heavy = loads.filter(({ bytes }) => bytes > PAGE_BYTES_MAX);
      expect(heavy).toEqual([]);
    });
  });

  it("the docs are interactive and load nothing from elsewhere", async () => {
    const { page } = await someone({ viewport: DESKTOP });
    const elsewhere: string[] = [];
    page.on("request", (r) => !r.url().startsWith(api.url) && !r.url().startsWith("data:") && elsewhere.push(r.url()));
    await page.goto("/docs");
    await page.waitForSelector(".opblock");
    expect(elsewhere).toEqual([]);
  });
});
