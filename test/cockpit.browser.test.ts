/** What operators see and do, in a real Chromium over real parts. */
import { eq } from "drizzle-orm";
import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";
import { payments } from "../src/stores/schema.ts";
import {
  api,
  availability,
  chromiumPath,
  DESKTOP,
  held,
  hold,
  op,
  orderIdOf,
  pay,
  saleWith,
  shown,
  someone,
  useBrowser,
  type Visitor,
  world,
} from "./browser.ts";
import { startProxy } from "./proxy.ts";
import { ADMIN_TOKEN, until } from "./support.ts";

describe.skipIf(!chromiumPath)("in a browser", () => {
  useBrowser();

  describe("an operator", () => {
    async function signedIn(saleId: string): Promise<Visitor> {
      const visitor = await someone({ viewport: DESKTOP });
      const { page } = visitor;
      await page.goto("/admin");
      await page.fill("#token", ADMIN_TOKEN);
      await page.click('main button[type="submit"]');
      await page.goto(`/admin?sale=${saleId}`);
      await page.waitForSelector('#live[data-state="ok"]');
      return visitor;
    }
    const answer = async (page: Page, values: Record<string, string> = {}) => {
      for (const [name, value] of Object.entries(values)) await page.fill(`#ask-${name}`, value);
      await page.click("#ask-yes");
      await page.waitForSelector("#ask", { state: "hidden" });
    };

    it("gets in with the admin token alone, and out again", async () => {
      const { page, context } = await someone();
      await page.goto("/admin");
      await page.fill("#token", "not-the-admin-token");
      await page.click('main button[type="submit"]');
      expect(await page.textContent('[role="alert"]')).toBe("This is not a valid token.");
      await page.fill("#token", ADMIN_TOKEN);
      await page.click('main button[type="submit"]');
      await page.waitForSelector('#live[data-state="ok"]');
      expect((await context.cookies()).find((c) => c.name === "fukubukuro_admin")).toMatchObject({
        httpOnly: true,
        sameSite: "Strict",
      });
      await page.click('form[action="/admin/sign-out"] button');
      await page.waitForSelector("#token");
      expect(await page.evaluate("fetch('/v1/admin/sales').then((r) => r.status)")).toBe(401);
    });

    it("tops up once, and a storefront that is open sees it", async () => {
      const [{ page: shop }, saleId] = [await someone(), await saleWith({ stock: 0 })];
      await shop.goto(`/s/${saleId}`);
      await until("sold out", async () => (await availability(shop)) === "Sold out");
      const { page } = await signedIn(saleId);
      await page.click('[data-top-up="bag"]');
      await answer(page, { delta: "7", reason: "found a box" });
      const began = performance.now();
      await until("the shop to see it", async () => (await availability(shop)) === "Available · 7 left");
      console.log(`top-up seen by an open storefront after ${Math.round(performance.now() - began)} ms`);
      await until("the figures", async () => (await page.textContent("#stock-rows tr td:nth-of-type(2)")) === "7");
      await until("the trail", async () => /top-up.*found a box/.test((await page.textContent("#trail-rows")) ?? ""));
      // Taking away what is not there is refused, with the reason, and nothing is lost.
      await page.click('[data-top-up="bag"]');
      await page.fill("#ask-delta", "-8");
      await page.fill("#ask-reason", "too many");
      await page.click("#ask-yes");
      await page.waitForSelector("#ask-problem:not([hidden])");
      expect(await page.textContent("#ask-problem")).toContain("only 7 units are free");
    });

    it("pauses and resumes reserving and paying, extends all holds, closes", async () => {
      const [{ page: shop }, saleId] = [await someone(), await saleWith({ holdMs: 60_000 })];
      await hold(shop, saleId);
      const { page } = await signedIn(saleId);
      await page.click("#switch-paying");
      await answer(page);
      await until("paying is paused", async () => (await page.textContent("#paying-switch")) === "paused");
      await pay(shop);
      await shop.waitForSelector("#problem:not([hidden])");
      expect(await shop.textContent("#problem")).toContain("paused");
      await until("the switch", async () => (await page.textContent("#switch-paying")) === "Resume");
      await page.click("#switch-paying");
      await answer(page);
      await page.click("#extend");
      await answer(page, { minutes: "30" });
      await shop.reload();
      await shown(shop, "details");
      await until("more time", async () =>
        /^3\d:\d\d$|^2\d:\d\d$/.test((await shop.textContent("#details [data-time-left]")) ?? ""),
      );
      await until("the switch", async () => (await page.textContent("#switch-reserving")) === "Pause");
      await page.click("#switch-reserving");
      await answer(page);
      const { page: late } = await someone();
      await late.goto(`/s/${saleId}`);
      await until("paused", async () => /paused/.test((await late.textContent("#status-words")) ?? ""));
      await page.click("#close");
      await answer(page);
      await until("closed", async () => /closed/.test((await late.textContent("#status-words")) ?? ""));
      // A shopper who holds a bag can still pay.
      await pay(shop);
      await orderIdOf(shop);
    });

    it("sees a payment on which the gateway and the books do not agree, and decides about it", async () => {
      const [{ page: shop }, saleId] = [await someone(), await saleWith()];
      await hold(shop, saleId);
      await pay(shop);
      const orderId = await orderIdOf(shop);
      const reference = orderId.slice(4);
      // As the walk of the gateway's list marks it.
      const { db } = api.service.ctx;
      await db
        .update(payments)
        .set({ attention: 'the gateway\'s list says "disputed"' })
        .where(eq(payments.reference, reference));
      const { page } = await signedIn(saleId);
      await page.waitForSelector("#attention:not([hidden])");
      expect(await page.textContent("#attention-rows tr th")).toBe(reference);
      expect(await page.textContent("#attention-rows")).toContain('list says "disputed"');
      expect(await page.textContent("#gate-rows")).toMatch(/charges 0 .* kept after a lost answer 0/);
      await page.click(`[data-settle="${reference} accept"]`);
      await answer(page, { reason: "seen on the bank's statement" });
      await page.waitForSelector("#attention", { state: "hidden" });
      await until("the trail", async () =>
        /settle payment.*accept/.test((await page.textContent("#trail-rows")) ?? ""),
      );
      const [row] = await db.select().from(payments).where(eq(payments.reference, reference));
      expect(row).toMatchObject({ state: "captured", attention: null, settled: { action: "accept" } });
    });

    it("refunds with restock, resends the mail, reads the certificate and the CSV", async () => {
      const [{ page: shop }, saleId] = [await someone(), await saleWith()];
      await hold(shop, saleId);
      await pay(shop);
      const orderId = await orderIdOf(shop);
      const { page } = await signedIn(saleId);
      await page.click(`[data-resend="${orderId}"]`);
      await answer(page, { reason: "asked on the phone" });
      const mails = await until("two mails", async () => {
        const found = (await world.mailbox.list()).filter((m) => m.subject.includes(orderId));
        return found.length === 2 && found;
      });
      expect(new Set(mails.map((m) => m.messageId)).size).toBe(2);
      const csv = await page.evaluate("fetch(document.querySelector('#csv').href).then((r) => r.text())");
      expect(csv).toContain(orderId);
      await page.click(`[data-refund="${orderId}"]`);
      await page.check("#ask-restock");
      await answer(page, { reason: "changed their mind" });
      await until("refunded", async () => /refunded/.test((await page.textContent("#order-rows")) ?? ""));
      await until("the unit to be back", async () => (await held(saleId)).free === 10);
      await until("the lights", async () => (await page.$$('.light[data-state="ok"]')).length === 3);
      await page.click("#reconcile");
      await answer(page);
      await page.click("#certificate");
      await page.waitForSelector(".certificate");
      expect(await page.textContent(".verdict")).toBe("The books balance.");
      expect(await op.audit(saleId)).toMatchObject({ ok: true, mails: { sent: 2, withoutOrder: 0 } });
    });

    it("creates a sale by the form, is told what is wrong with it, and sees it in the shop", async () => {
      const { page } = await signedIn("");
      const id = `made-${Date.now()}`;
      await page.goto("/admin/new");
      await page.fill("#id", id);
      await page.fill("#name", "Made by hand");
      await page.fill("#sku-1", "tea");
      await page.fill("#itemName-1", "Tea");
      await page.fill("#taxPercent-1", "8");
      await page.fill("#invoiceNumber", "12");
      await page.fill("#shopName", "Hand Shop");
      await page.click('#sale-form [type="submit"]');
      await page.waitForSelector("#problem:not([hidden])");
      expect(await page.textContent("#problem")).toContain("shop.invoiceNumber");
      await page.fill("#invoiceNumber", "T1234567890123");
      await page.click('#sale-form [type="submit"]');
      await page.waitForURL(`**/admin?sale=${id}`);
      await page.waitForSelector('[data-top-up="tea"]');
      const { page: shop } = await someone();
      await shop.goto(`/s/${id}`);
      await until("the countdown", async () => /Opens in/.test((await shop.textContent("#status")) ?? ""));
      expect(await shop.textContent("#review")).toContain("Hand Shop");
    });

    it("whose stores go away is told, and the page is live again by itself", async () => {
      const saleId = await saleWith();
      const link = await startProxy(Number(new URL(api.url).port));
      const visitor = await someone({ viewport: DESKTOP, at: `http://127.0.0.1:${link.port}` });
      const { page } = visitor;
      await page.goto("/admin");
      await page.fill("#token", ADMIN_TOKEN);
      await page.click('main button[type="submit"]');
      await page.waitForSelector('#live[data-state="ok"]');
      link.blackHole(true);
      link.cut();
      await page.waitForSelector('#live[data-state="bad"]');
      link.blackHole(false);
      link.cut();
      await page.waitForSelector('#live[data-state="ok"]');
      expect(saleId).toBeTruthy();
      await page.close();
      await link.close();
    });
  });
});
