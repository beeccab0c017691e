/** What people see, in a real Chromium over real parts: shoppers with two hands, operators, and what every page must keep. */
import { mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { SaleBody } from "../src/contract.ts";
import { chromiumPath, DESKTOP, openBrowser, PHONE, seriousFaults, type Visitor, visit } from "./browser.ts";
import { startProxy } from "./proxy.ts";
import { ADMIN_TOKEN, makeWorld, operator, pause, type Running, shopper, until, type World } from "./support.ts";

const PAGE_BYTES_MAX = 100_000;
/** SCREENSHOTS=1: pictures of every page for the README, under docs/images. */
const IMAGES = process.env.SCREENSHOTS ? fileURLToPath(new URL("../docs/images/", import.meta.url)) : null;

let world: World;
let api: Running;
let browser: Browser;
let op: ReturnType<typeof operator>;
let visitors: Visitor[] = [];

async function someone(options: Parameters<typeof visit>[2] & { at?: string } = {}): Promise<Visitor> {
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
async function saleWith(more: Partial<SaleBody> & { stock?: number } = {}): Promise<string> {
  const { stock = 10, ...sale } = more;
  const items = [{ sku: "bag", name: "福袋 Lucky bag", unitPrice: 5_000, stock }];
  return (await op.create({ name: "福袋 New Year", holdMs: 600_000, shippingFee: 800, shop: SHOP, terms: TERMS, items, ...sale })).body.id;
}

/** Something to see in the cockpit's picture. */
async function smallRush(saleId: string): Promise<void> {
  await op.topUp(saleId, 40, "rush");
  const shop = async (n: number) => {
    await pause(Math.random() * 6_000);
    const s = shopper(api.url, `rush-${n}`);
    const { status, body } = await s.reserve(saleId, "k");
    if (status === 201 && n % 6 > 0) await s.confirm(body.id, n % 3 === 0 ? { gateway: "cod" } : { token: n % 16 === 1 ? "tok_slow" : "tok_ok" }, { waitS: 1 });
  };
  await Promise.all(Array.from({ length: 90 }, (_, n) => shop(n)));
}

const shown = (page: Page, section: string) => page.waitForSelector(`#${section}:not([hidden])`);
const buyButton = 'li[data-sku="bag"] button';
const availability = (page: Page) => page.textContent("[data-availability]");

/** To the end of the first step: the bag is held. */
async function hold(page: Page, saleId: string): Promise<void> {
  await page.goto(`/s/${saleId}`);
  await page.click(`${buyButton}:enabled`);
  await shown(page, "details");
}
async function fillIn(page: Page, payment: { token?: string; gateway?: string } = {}): Promise<void> {
  await page.fill("#name", "山田 花");
  await page.fill("#email", "hana@example.jp");
  await page.fill("#address", "東京都渋谷区 1-2-3");
  if (payment.gateway) await page.check(`input[name="gateway"][value="${payment.gateway}"]`);
  else await page.selectOption("#token", payment.token ?? "tok_ok");
  await page.click('#details-form [type="submit"]');
  await shown(page, "review");
}
async function pay(page: Page, payment: { token?: string; gateway?: string } = {}): Promise<void> {
  await fillIn(page, payment);
  await page.click("#pay");
}
const orderIdOf = async (page: Page) => {
  await shown(page, "done");
  return (await page.textContent("#order-id")) as string;
};
const held = async (saleId: string) => (await op.sale(saleId)).items[0] as { free: number; held: number; sold: number; claimed: number };

describe.skipIf(!chromiumPath)("in a browser", () => {
  beforeAll(async () => {
    [world, browser] = await Promise.all([makeWorld(), openBrowser()]);
    api = await world.start();
    op = operator(api.url);
  });
  afterAll(async () => {
    await browser?.close();
    await world?.close();
  });
  afterEach(async () => {
    const complaints = visitors.flatMap((v) => v.complaints);
    await Promise.all(visitors.map((v) => v.context.close()));
    visitors = [];
    expect(complaints, "nothing was blocked by the pages' policy and no script threw").toEqual([]);
  });

  describe("a shopper", () => {
    it.each([
      ["ja-JP", "ご注文ありがとうございます", "七日以内に発送", /ご注文を承りました/, "試験商店"],
      ["en-US", "Thank you for your order", "shipped within seven days", /Your order .* is confirmed/, "Test Shop"],
    ])("in %s buys a bag, is shown what the law asks before paying, and gets the order's page and mail", async (locale, thanks, delivery, subject, seller) => {
      const { page } = await someone({ locale });
      const saleId = await saleWith();
      await hold(page, saleId);
      await fillIn(page);
      const review = (await page.textContent("#review")) ?? "";
      for (const part of ["福袋 Lucky bag × 1", "5,800", delivery, seller, "T1234567890123", "hana@example.jp"]) expect(review).toContain(part);
      await page.click("#pay");
      const orderId = await orderIdOf(page);
      expect(await page.textContent("#done h1")).toBe(thanks);
      await page.click("#to-order");
      await page.waitForSelector("#order-lines tr");
      expect(await page.textContent("#order-lines")).toContain("5,800");
      const mail = await until("the mail", async () => (await world.mailbox.list()).find((m) => m.subject.includes(orderId)));
      expect(mail.subject).toMatch(subject);
      for (const body of [mail.text, mail.html])
        for (const part of [orderId, seller, delivery, "T1234567890123", "5,800", "10%", "527"]) expect(body).toContain(part);
    });

    it("who presses twice, and in two tabs, holds one bag", async () => {
      const { page, newTab } = await someone();
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      await page.dblclick(buyButton);
      await shown(page, "details");
      const other = await newTab();
      await other.goto(`/s/${saleId}`);
      await shown(other, "details");
      expect(await held(saleId)).toMatchObject({ free: 9, held: 1 });
    });

    it("whose answer was lost on the way gets the same bag, not two", async () => {
      const link = await startProxy(Number(new URL(api.url).port));
      const { page } = await someone({ at: `http://127.0.0.1:${link.port}` });
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      link.loseReplies(true);
      await page.click(buyButton);
      await until("the hold that nobody was told of", async () => (await held(saleId)).held === 1);
      link.loseReplies(false);
      await shown(page, "details");
      expect(await held(saleId)).toMatchObject({ free: 9, held: 1 });
      await page.close();
      await link.close();
    });

    it("who reloads before the answer came finds the bag again", async () => {
      const link = await startProxy(Number(new URL(api.url).port));
      const { page } = await someone({ at: `http://127.0.0.1:${link.port}` });
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      link.loseReplies(true);
      await page.click(buyButton);
      await until("the hold that nobody was told of", async () => (await held(saleId)).held === 1);
      link.loseReplies(false);
      await page.reload();
      await shown(page, "details");
      expect(await held(saleId)).toMatchObject({ free: 9, held: 1 });
      await page.close();
      await link.close();
    });

    it("who reloads and closes the tab while paying comes back to a payment that is being confirmed, and is charged once", async () => {
      const { page, newTab } = await someone();
      const saleId = await saleWith();
      await hold(page, saleId);
      await pay(page, { token: "tok_slow" });
      await shown(page, "paying");
      await page.reload();
      await shown(page, "paying");
      expect(await page.isVisible("#problem")).toBe(false);
      await page.close();
      const tab = await newTab();
      await tab.goto(`/s/${saleId}`);
      await shown(tab, "paying");
      await orderIdOf(tab);
      await until("the books", async () => (await op.audit(saleId)).charges.captured === 1);
      expect(await op.audit(saleId)).toMatchObject({ ok: true, charges: { captured: 1, twice: 0 }, orders: { recorded: 1 } });
    });

    it("whose gateway never answers is told that it is being confirmed, never that it failed, until it is known", async () => {
      const { page } = await someone();
      const saleId = await saleWith();
      await hold(page, saleId);
      await pay(page, { token: "tok_timeout_after_charge" });
      await shown(page, "paying");
      await orderIdOf(page);
      expect(await page.isVisible("#problem")).toBe(false);
    });

    it("whose card is declined keeps the bag and pays in another way", async () => {
      const { page } = await someone();
      const saleId = await saleWith();
      await hold(page, saleId);
      await pay(page, { token: "tok_declined" });
      await page.waitForSelector("#problem:not([hidden])");
      expect(await page.textContent("#problem")).toContain("card_declined");
      await shown(page, "details");
      await pay(page, { gateway: "cod" });
      await orderIdOf(page);
      expect(await held(saleId)).toMatchObject({ free: 9, held: 0 });
    });

    it.each([
      ["approves", "approve"],
      ["refuses", "refuse"],
    ])("who %s at the bank's page comes back to where the payment stands", async (_, answer) => {
      const { page } = await someone();
      const saleId = await saleWith();
      await hold(page, saleId);
      await pay(page, { token: "tok_3ds" });
      await page.waitForSelector(`button[value="${answer}"]`);
      expect(await seriousFaults(page)).toEqual([]);
      await page.click(`button[value="${answer}"]`);
      await page.waitForURL(`**/s/${saleId}`);
      if (answer === "approve") return void (await orderIdOf(page));
      await page.waitForSelector("#problem:not([hidden])");
      expect(await page.textContent("#problem")).toContain("authentication_failed");
      await shown(page, "details");
    });

    it("who finds all held sees when one may come back, buys the released one, and the next is told sold out", async () => {
      const [first, second, third] = [await someone(), await someone(), await someone()];
      const saleId = await saleWith({ stock: 1 });
      await hold(first.page, saleId);
      await second.page.goto(`/s/${saleId}`);
      await until("all held", async () => /All are held.*Next release in \d+:\d\d/.test((await availability(second.page)) ?? ""));
      expect(await second.page.isEnabled(buyButton)).toBe(false);
      await first.page.click("[data-release]");
      await shown(first.page, "offer");
      await second.page.click(`${buyButton}:enabled`);
      await shown(second.page, "details");
      await pay(second.page);
      await orderIdOf(second.page);
      await third.page.goto(`/s/${saleId}`);
      await until("sold out", async () => (await availability(third.page)) === "Sold out");
    });

    it("of two who race for the last bag one holds it and the other is told the truth", async () => {
      const racers = [await someone(), await someone()];
      const saleId = await saleWith({ stock: 1 });
      for (const r of racers) {
        await r.page.goto(`/s/${saleId}`);
        await r.page.waitForSelector(`${buyButton}:enabled`);
      }
      await Promise.all(racers.map((r) => r.page.click(buyButton, { timeout: 5_000 }).catch(() => {})));
      const holders = await until("one holder", async () => {
        const all = await Promise.all(racers.map((r) => r.page.isVisible("#details")));
        return all.includes(true) && all;
      });
      const loser = racers[holders.indexOf(false)] as Visitor;
      await until("the other to see it", async () => /held/.test((await availability(loser.page)) ?? ""));
      expect(await loser.page.isVisible("#details")).toBe(false);
      expect(await held(saleId)).toMatchObject({ free: 0, held: 1 });
    });

    it("who is early sees the countdown by the service's clock, and can press the moment it opens", async () => {
      const { page } = await someone();
      // This machine's own clock is an hour off.
      await page.clock.install({ time: Date.now() + 3_600_000 });
      const saleId = await saleWith({ opensAt: new Date(Date.now() + 4_000).toISOString() });
      await page.goto(`/s/${saleId}`);
      await until("the countdown", async () => /^0:0\d$/.test((await page.textContent("#countdown")) ?? ""));
      expect(await page.isEnabled(buyButton)).toBe(false);
      await page.click(`${buyButton}:enabled`);
      await shown(page, "details");
    });

    it("whose time runs out is told that the bag went back and nothing was charged", async () => {
      const { page } = await someone();
      const saleId = await saleWith({ holdMs: 2_500 });
      await hold(page, saleId);
      await page.waitForSelector("#problem:not([hidden])");
      expect(await page.textContent("#problem")).toContain("Nothing was charged");
      await shown(page, "offer");
      await until("the unit to be free", async () => (await held(saleId)).free === 10);
    });

    it("whose hold was lost with Redis is told so, and that nothing was charged", async () => {
      // No worker: what the journal holds is in Redis alone.
      const other = await makeWorld();
      const quiet = await other.start({ ROLE: "api" });
      const { page } = await someone({ at: quiet.url });
      const saleId = (await operator(quiet.url).create()).body.id;
      await hold(page, saleId);
      await quiet.service.ctx.redis.client.flushall();
      await page.waitForSelector("#problem:not([hidden])");
      expect(await page.textContent("#problem")).toContain("lost your hold. Nothing was charged");
      await page.close();
      await other.close();
    });
  });

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
      expect((await context.cookies()).find((c) => c.name === "fukubukuro_admin")).toMatchObject({ httpOnly: true, sameSite: "Strict" });
      await page.click('form[action="/admin/sign-out"] button');
      await page.waitForSelector("#token");
      expect(await page.evaluate("fetch('/v1/admin/sales').then((r) => r.status)")).toBe(401);
    });

    it("tops up once, and a storefront that is open sees it", async () => {
      const [{ page: shop }, saleId] = [await someone(), await saleWith({ stock: 0 })];
      await shop.goto(`/s/${saleId}`);
      await until("sold out", async () => (await availability(shop)) === "Sold out");
      const { page } = await signedIn(saleId);
      await page.click('[data-topup="bag"]');
      await answer(page, { delta: "7", reason: "found a box" });
      const began = performance.now();
      await until("the shop to see it", async () => (await availability(shop)) === "Available · 7 left");
      console.log(`top-up seen by an open storefront after ${Math.round(performance.now() - began)} ms`);
      await until("the figures", async () => (await page.textContent("#stock-rows tr td:nth-of-type(2)")) === "7");
      await until("the trail", async () => /top-up.*found a box/.test((await page.textContent("#trail-rows")) ?? ""));
      // Taking away what is not there is refused, with the reason, and nothing is lost.
      await page.click('[data-topup="bag"]');
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
      await until("more time", async () => /^3\d:\d\d$|^2\d:\d\d$/.test((await shop.textContent("#details [data-time-left]")) ?? ""));
      await until("the switch", async () => (await page.textContent("#switch-reserving")) === "Pause");
      await page.click("#switch-reserving");
      await answer(page);
      const { page: late } = await someone();
      await late.goto(`/s/${saleId}`);
      await until("paused", async () => /paused/.test((await late.textContent("#status-words")) ?? ""));
      await page.click("#close");
      await answer(page);
      await until("closed", async () => /closed/.test((await late.textContent("#status-words")) ?? ""));
      // Who holds a bag still pays.
      await pay(shop);
      await orderIdOf(shop);
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
      await page.waitForSelector('[data-topup="tea"]');
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

  describe.each(["ja-JP", "en-US"])("every page in %s", (locale) => {
    it.each([
      ["phone", PHONE],
      ["desktop", DESKTOP],
    ])("on a %s has no serious fault that axe knows, fits the screen and is light", async (device, viewport) => {
      const visitor = await someone({ locale, viewport });
      const { page, loads } = visitor;
      const saleId = await saleWith({ name: locale === "ja-JP" ? "新春福袋 2027" : "New Year lucky bags 2027" });
      const faults: string[] = [];
      const look = async (name: string) => {
        // Letters have to be drawn before a picture is taken or contrast is measured.
        await page.evaluate("document.fonts.ready");
        for (const fault of await seriousFaults(page)) faults.push(`${name}: ${fault}`);
        const wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth");
        if (Number(wide) > 0) faults.push(`${name}: ${wide} px wider than the screen`);
        if (!IMAGES) return;
        await mkdir(IMAGES, { recursive: true });
        await page.screenshot({ path: `${IMAGES}${name}-${locale.slice(0, 2)}-${device}.png`, fullPage: name !== "ask" && name !== "mails" });
      };
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      await look("shop");
      await page.click(buyButton);
      await shown(page, "details");
      await look("details");
      await fillIn(page, { token: "tok_slow" });
      await look("review");
      await page.click("#pay");
      await shown(page, "paying");
      await look("paying");
      await orderIdOf(page);
      await look("done");
      await page.click("#to-order");
      await page.waitForSelector("#order-lines tr");
      await look("order");
      await page.goto("/mails");
      await look("mails");
      await page.click("tbody a");
      await page.waitForSelector("iframe");
      await look("mail");
      await page.goto(`/mails/preview/${saleId}`);
      await look("mail-preview");
      await page.goto("/admin");
      await look("sign-in");
      await page.fill("#token", ADMIN_TOKEN);
      await page.click('main button[type="submit"]');
      await page.goto(`/admin?sale=${saleId}`);
      await until("the lights", async () => (await page.$$('.light[data-state="ok"]')).length === 3);
      if (IMAGES) await smallRush(saleId);
      await look("cockpit");
      await page.click('[data-topup="bag"]');
      await look("ask");
      await page.goto("/admin/new");
      await page.waitForSelector("#sku-1");
      await look("new-sale");
      await page.goto(`/admin/sales/${saleId}/certificate`);
      await look("certificate");
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
