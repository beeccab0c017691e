/** What shoppers see, in a real Chromium over real parts: pressed twice, reloaded, closed, answered late or never. */
import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";
import {
  api,
  availability,
  buyButton,
  chromiumPath,
  fillIn,
  held,
  hold,
  op,
  orderIdOf,
  pay,
  saleWith,
  seriousFaults,
  shown,
  someone,
  useBrowser,
  type Visitor,
  world,
} from "./browser.ts";
import { startProxy } from "./proxy.ts";
import { makeWorld, operator, pause, until } from "./support.ts";

describe.skipIf(!chromiumPath)("in a browser", () => {
  useBrowser();

  describe("a shopper", () => {
    it.each([
      ["ja-JP", "ご注文ありがとうございます", "七日以内に発送", /ご注文を承りました/, "試験商店"],
      ["en-US", "Thank you for your order", "shipped within seven days", /Your order .* is confirmed/, "Test Shop"],
    ])(
      "in %s buys a bag, is shown what the law asks before paying, and gets the order's page and mail",
      async (locale, thanks, delivery, subject, seller) => {
        const { page } = await someone({ locale });
        const saleId = await saleWith();
        await hold(page, saleId);
        await fillIn(page);
        const review = (await page.textContent("#review")) ?? "";
        for (const part of ["福袋 Lucky bag × 1", "5,800", delivery, seller, "T1234567890123", "hana@example.jp"])
          expect(review).toContain(part);
        await page.click("#pay");
        const orderId = await orderIdOf(page);
        expect(await page.textContent("#done h1")).toBe(thanks);
        await page.click("#to-order");
        await page.waitForSelector("#order-lines tr");
        expect(await page.textContent("#order-lines")).toContain("5,800");
        const mail = await until("the mail", async () =>
          (await world.mailbox.list()).find((m) => m.subject.includes(orderId)),
        );
        expect(mail.subject).toMatch(subject);
        for (const body of [mail.text, mail.html])
          for (const part of [orderId, seller, delivery, "T1234567890123", "5,800", "10%", "527"])
            expect(body).toContain(part);
      },
    );

    it("who presses before the page has found out who they are is one shopper, with one bag", async () => {
      const { page } = await someone();
      const saleId = await saleWith();
      let shoppers = 0;
      // The shop's log-in takes its time.
      await page.route("**/demo/shopper", async (route) => {
        shoppers++;
        await pause(1_000);
        await route.continue();
      });
      await hold(page, saleId);
      await page.reload();
      await shown(page, "details");
      expect(shoppers).toBe(1);
    });

    it("whose token the shop does not know any more is somebody new, and buys", async () => {
      const { page } = await someone();
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.evaluate(
        "localStorage.setItem('fukubukuro.shopper', JSON.stringify({ token: 'of.another.secret', untilMs: Date.now() + 3600000 }))",
      );
      await page.reload();
      await hold(page, saleId);
    });

    it("who comes back while the shop cannot answer is not given a second bag, and finds the first", async () => {
      const link = await startProxy(Number(new URL(api.url).port));
      const { page } = await someone({ at: `http://127.0.0.1:${link.port}` });
      const saleId = await saleWith();
      await hold(page, saleId);
      // What is asked for is answered, but not what this shopper has.
      await page.route(`**/v1/sales/${saleId}/reservations`, (route) => route.abort());
      await page.reload();
      await until("the sale", async () => /Available/.test((await availability(page)) ?? ""));
      expect(await page.isEnabled(buyButton)).toBe(false);
      await page.unroute(`**/v1/sales/${saleId}/reservations`);
      await shown(page, "details");
      expect(await held(saleId)).toMatchObject({ free: 9, held: 1 });
      await page.close();
      await link.close();
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

    it.each([
      ["waits gets", () => {}],
      ["reloads before the answer came finds", (page: Page) => page.reload()],
    ])("whose answer was lost on the way and who %s the same bag, not two", async (_, goOn) => {
      const link = await startProxy(Number(new URL(api.url).port));
      const { page } = await someone({ at: `http://127.0.0.1:${link.port}` });
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      link.loseReplies(true);
      await page.click(buyButton);
      await until("the hold that nobody was told of", async () => (await held(saleId)).held === 1);
      link.loseReplies(false);
      await goOn(page);
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
      expect(await op.audit(saleId)).toMatchObject({
        ok: true,
        charges: { captured: 1, twice: 0 },
        orders: { recorded: 1 },
      });
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
      await until("all held", async () =>
        /All are held.*Next release in \d+:\d\d/.test((await availability(second.page)) ?? ""),
      );
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

    it("whose shop cannot be reached is told so, and the page goes on by itself", async () => {
      const link = await startProxy(Number(new URL(api.url).port));
      const { page } = await someone({ at: `http://127.0.0.1:${link.port}` });
      const saleId = await saleWith();
      await page.goto(`/s/${saleId}`);
      await page.waitForSelector(`${buyButton}:enabled`);
      link.loseReplies(true);
      await until("the words", async () => /cannot be reached/.test((await page.textContent("#status-words")) ?? ""));
      link.loseReplies(false);
      await until("the sale", async () => /Open until/.test((await page.textContent("#status-words")) ?? ""));
      await page.close();
      await link.close();
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
});
