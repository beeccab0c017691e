/** @jsxImportSource hono/jsx */
/**
 * The routes of the pages. The cockpit and the docs are everywhere; storefront and mails only in local mode. Nothing is
 * fetched from outside.
 */
import type { Context as Http } from "hono";
import { nanoid } from "nanoid";
import type { Context } from "../context.ts";
import type { Sale } from "../domain/sale.ts";
import type { Routes } from "../http/api.ts";
import { type AdminAuth, signShopperToken } from "../http/auth.ts";
import { findSale } from "../http/lookups.ts";
import { Problem } from "../http/problem.ts";
import { saleStatus } from "../http/views.ts";
import { assets } from "./assets.ts";
import { cockpitRoutes } from "./cockpit.tsx";
import { type PageContext, page } from "./layout.tsx";
import { MAIL_CSP, MailPage, MailsPage, previewOf } from "./mails.tsx";
import { NoSalePage, OrderPage, SalePage } from "./shop.tsx";

const HTML = "text/html; charset=utf-8";
// Swagger UI sets styles from its script; scripts come from here alone.
const DOCS_CSP =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'";
const DOCS_INIT = `window.ui = SwaggerUIBundle({ url: "/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null });`;
/** Names of assets change with their content. */
const FOREVER = "public, max-age=31536000, immutable";
/** A demo shopper of a browser. */
const SHOPPER_MS = 7 * 86_400_000;

export function pageRoutes(ctx: Context, routes: Routes, auth: AdminAuth): void {
  const { app, send } = routes;
  app.get("/assets/:file", async (c) => {
    const asset = Object.values(await assets()).find((a) => a.path === c.req.path);
    if (!asset) throw new Problem("NOT_FOUND", "no such asset; load the page again");
    return send(c, 200, await asset.body(), { "content-type": asset.type, "cache-control": FOREVER });
  });
  docsRoutes(routes);
  cockpitRoutes(ctx, routes, auth);
  if (ctx.mailbox) {
    shopRoutes(ctx, routes);
    mailRoutes(ctx, routes, ctx.mailbox);
  }
}

const OTHERS_MAX = 5;

/** The one to show first: open before scheduled before paused before closed, the newest of each. */
function byInterest(sales: Sale[]): Sale[] {
  const order = ["open", "scheduled", "paused", "closed"];
  const rank = (s: Sale) => order.indexOf(saleStatus({ nowMs: Date.now(), ...s }));
  return [...sales].sort((a, b) => rank(a) - rank(b) || b.no - a.no);
}

function shopRoutes(ctx: Context, routes: Routes): void {
  const { app } = routes;
  const menu = ({ w }: PageContext) => <a href="/mails">{w.mailbox}</a>;
  const show = (c: Http, sale: Sale, all: Sale[]) =>
    page(c, routes, { title: (w) => `${sale.name} – ${w.demoShop}`, script: "shop.js", menu }, (pageContext) => (
      <SalePage pageContext={pageContext} sale={sale} others={all.filter((s) => s !== sale).slice(0, OTHERS_MAX)} />
    ));
  const saleOf = (c: Http) => findSale(ctx, c.req.param("saleId"));
  app.get("/", async (c) => {
    const all = byInterest(await ctx.sales.all());
    if (all[0]) return show(c, all[0], all);
    return page(c, routes, { title: (w) => w.demoShop, menu }, (pageContext) => (
      <NoSalePage pageContext={pageContext} />
    ));
  });
  app.get("/s/:saleId", async (c) => show(c, await saleOf(c), byInterest(await ctx.sales.all())));
  app.get("/s/:saleId/orders/:orderId", async (c) => {
    const sale = await saleOf(c);
    const orderId = c.req.param("orderId") ?? "";
    return page(c, routes, { title: (w) => `${w.order} ${orderId}`, script: "order.js", menu }, (pageContext) => (
      <OrderPage pageContext={pageContext} sale={sale} orderId={orderId} />
    ));
  });
  // In place of a shop's own login: every new browser is a new customer.
  app.post("/demo/shopper", (c) => {
    const customerId = `demo-${nanoid(12)}`;
    const secret = ctx.config.shopperTokenSecrets?.[0] as string;
    return routes.json(c, 201, {
      customerId,
      token: signShopperToken(secret, customerId, SHOPPER_MS),
      untilMs: Date.now() + SHOPPER_MS - 60_000,
    });
  });
}

function mailRoutes(ctx: Context, routes: Routes, mailbox: NonNullable<Context["mailbox"]>): void {
  const { app, send } = routes;
  const menu = ({ w }: PageContext) => <a href="/">{w.buyMore}</a>;
  const mailOf = async (c: Http) => {
    const mail = await mailbox.read(c.req.param("id") ?? "");
    if (!mail) throw new Problem("NOT_FOUND", "no such mail");
    return mail;
  };
  const html = (c: Http, body: string) =>
    send(c, 200, body, { "content-type": HTML, "content-security-policy": MAIL_CSP });
  app.get("/mails", async (c) => {
    const [mails, sales] = [await mailbox.list(), await ctx.sales.all()];
    return page(c, routes, { title: (w) => w.mailbox, menu }, (pageContext) => (
      <MailsPage pageContext={pageContext} mails={mails} sales={sales} />
    ));
  });
  const preview = async (c: Http) => {
    const sale = await findSale(ctx, c.req.param("saleId"));
    return { sale, mailIn: (language: string) => previewOf(sale, language) };
  };
  app.get("/mails/preview/:saleId", async (c) => {
    const { sale, mailIn } = await preview(c);
    return page(c, routes, { title: (w) => w.mailPreview, menu }, (pageContext) => (
      <MailPage
        pageContext={pageContext}
        mail={{ ...mailIn(pageContext.language), about: sale.name }}
        htmlHref={`/mails/preview/${sale.id}/html?lang=${pageContext.language}`}
      />
    ));
  });
  app.get("/mails/preview/:saleId/html", async (c) =>
    html(c, (await preview(c)).mailIn(c.req.query("lang") ?? "en").html),
  );
  app.get("/mails/:id", async (c) => {
    const mail = await mailOf(c);
    const about = `${mail.to} · ${mail.at} · ${mail.messageId}`;
    return page(c, routes, { title: () => mail.subject, menu }, (pageContext) => (
      <MailPage pageContext={pageContext} mail={{ ...mail, about }} htmlHref={`/mails/${mail.id}/html`} />
    ));
  });
  app.get("/mails/:id/html", async (c) => html(c, (await mailOf(c)).html));
}

function docsRoutes({ app, send }: Routes): void {
  app.get("/docs", async (c) => {
    const all = await assets();
    const html = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Fukubukuro API</title><link rel="icon" href="${all["favicon-32x32.png"].path}"><link rel="stylesheet" href="${all["swagger-ui.css"].path}"></head><body><div id="ui"></div><script src="${all["swagger-ui-bundle.js"].path}"></script><script src="/docs/init.js"></script></body></html>`;
    return send(c, 200, html, { "content-type": HTML, "content-security-policy": DOCS_CSP });
  });
  app.get("/docs/init.js", (c) => send(c, 200, DOCS_INIT, { "content-type": "text/javascript" }));
}
