/** Pages: the documentation, and in local mode a start page and the mails. Everything is served from here; nothing is fetched from outside. */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type { Context as Http } from "hono";
import { html } from "hono/html";
import type { Context } from "../context.ts";
import { Problem } from "../problem.ts";
import type { Routes } from "../routes.ts";

const HTML = "text/html; charset=utf-8";
const PAGE_CSP = "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'";
// Swagger UI sets styles from its script; scripts come from here alone.
const DOCS_CSP =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'";

const STYLE = `body{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}code,pre{background:#f3f3f3;padding:.1rem .3rem;border-radius:4px}
pre{padding:1rem;white-space:pre-wrap;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.4rem;text-align:left}a{color:#0b57d0}`;
const DOCS_INIT = `window.ui = SwaggerUIBundle({ url: "/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null });`;

export function pageRoutes(ctx: Context, { app, send }: Routes): void {
  const page = (c: Http, title: string, body: unknown) =>
    send(
      c,
      200,
      `<!doctype html>${html`<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${title}</title><link rel="stylesheet" href="/pages.css"></head><body>${body}</body></html>`}`,
      {
        "content-type": HTML,
        "content-security-policy": PAGE_CSP,
      },
    );

  app.get("/pages.css", (c) => send(c, 200, STYLE, { "content-type": "text/css", "cache-control": "public, max-age=300" }));

  const ui = dirname(createRequire(import.meta.url).resolve("swagger-ui-dist/package.json"));
  const files: Record<string, string> = { "swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png" };
  app.get("/docs", (c) =>
    send(
      c,
      200,
      `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fukubukuro API</title><link rel="icon" href="/docs/favicon-32x32.png"><link rel="stylesheet" href="/docs/swagger-ui.css"></head><body><div id="ui"></div><script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/init.js"></script></body></html>`,
      { "content-type": HTML, "content-security-policy": DOCS_CSP },
    ),
  );
  app.get("/docs/:file", async (c) => {
    if (c.req.param("file") === "init.js") return send(c, 200, DOCS_INIT, { "content-type": "text/javascript" });
    const type = files[c.req.param("file")];
    if (!type) throw new Problem("NOT_FOUND");
    return send(c, 200, await readFile(join(ui, c.req.param("file"))), { "content-type": type, "cache-control": "public, max-age=3600" });
  });

  const { mailbox } = ctx;
  if (!mailbox) return;
  app.get("/", async (c) => {
    const sales = await ctx.sales.all();
    return page(
      c,
      "Fukubukuro",
      html`<h1>Fukubukuro 福袋</h1>
        <p>Everything runs on this machine. The start page of the local mode shows where things are.</p>
        <ul><li><a href="/docs">/docs</a>: the API, to be tried out</li><li><a href="/mails">/mails</a>: mails that were sent</li><li><a href="/metrics">/metrics</a></li></ul>
        <h2>Sales</h2><ul>${sales.map((s) => html`<li><a href="/v1/sales/${s.id}">${s.name}</a> (<code>${s.id}</code>)</li>`)}</ul>`,
    );
  });
  app.get("/mails", async (c) => {
    const mails = await mailbox.list();
    return page(
      c,
      "Mails",
      html`<h1>Mails</h1><p>${mails.length} shown, newest first. They went through SMTP to the local mailbox, not to anyone.</p>
        <table><tr><th>At</th><th>To</th><th>Subject</th></tr>${mails.map((m) => html`<tr><td>${m.at}</td><td>${m.to}</td><td><a href="/mails/${m.id}">${m.subject}</a></td></tr>`)}</table>`,
    );
  });
  app.get("/mails/:id", async (c) => {
    const mail = await mailbox.read(c.req.param("id"));
    if (!mail) throw new Problem("NOT_FOUND", "no such mail");
    return page(
      c,
      mail.subject,
      html`<p><a href="/mails">Mails</a></p><h1>${mail.subject}</h1><p>To ${mail.to}, ${mail.at}, <code>${mail.messageId}</code></p><pre>${mail.text}</pre>`,
    );
  });
}
