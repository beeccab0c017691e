/** @jsxImportSource hono/jsx */
/** What all pages have in common: language, head, header, and the rules of what they may load. */
import type { Context as Http } from "hono";
import { getCookie } from "hono/cookie";
import type { Child, FC } from "hono/jsx";
import { type Language, preferredLanguage } from "../domain/language.ts";
import type { Routes } from "../http/api.ts";
import { headerOf, incomingOf } from "../http/requests.ts";
import { type Assets, assets } from "./assets.ts";
import type { AssetName } from "./bundle-assets.ts";
import { WORDS, type Words } from "./words.ts";

/** Everything comes from this process; nothing inline, nothing from elsewhere, in no frame. */
export const PAGE_CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/** A page that is kept as a file has its style inside and nothing else. */
const STANDALONE_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

const LANGUAGE_COOKIE = "fukubukuro_language";
const YEAR_S = 365 * 86_400;

export interface PageContext {
  language: Language;
  w: Words;
  assets: Assets;
  /** The page's own address in the other language. */
  otherHref: string;
}

/** `?lang=` (kept in a cookie from then on), else the cookie, else `Accept-Language`. */
function languageOf(c: Http): { language: Language; cookie: string | null } {
  const asked = c.req.query("lang");
  if (asked === "ja" || asked === "en")
    return { language: asked, cookie: `${LANGUAGE_COOKIE}=${asked}; Path=/; Max-Age=${YEAR_S}; SameSite=Lax` };
  const kept = getCookie(c, LANGUAGE_COOKIE);
  if (kept === "ja" || kept === "en") return { language: kept, cookie: null };
  return { language: preferredLanguage(headerOf(incomingOf(c).headers, "accept-language")), cookie: null };
}

export interface PageOptions {
  title: (w: Words) => string;
  script?: AssetName;
  status?: number;
  headers?: Record<string, string>;
  /** Where the name in the header leads. */
  home?: string;
  /** Complete in itself, to be kept as a file: its style inside, no header. */
  standalone?: boolean;
  /** Beside the switch of languages. */
  menu?: (pageContext: PageContext) => Child;
}

const Header: FC<{ pageContext: PageContext; home: string; menu: PageOptions["menu"] }> = ({
  pageContext,
  home,
  menu,
}) => {
  const other = pageContext.language === "ja" ? "en" : "ja";
  return (
    <>
      <a class="skip" href="#main">
        {pageContext.w.skip}
      </a>
      <header class="top">
        <a class="brand" href={home}>
          <img src={pageContext.assets["bag.svg"].path} alt="" width="28" height="28" /> Fukubukuro
        </a>
        <nav>
          {menu?.(pageContext)}
          <a href={pageContext.otherHref} lang={other} hreflang={other}>
            {pageContext.w.otherLanguage}
          </a>
        </nav>
      </header>
    </>
  );
};

/** A whole page as an answer. */
export async function page(
  c: Http,
  routes: Routes,
  o: PageOptions,
  body: (pageContext: PageContext) => Child,
): Promise<Response> {
  const { language, cookie } = languageOf(c);
  const other = new URLSearchParams(c.req.query());
  other.set("lang", language === "ja" ? "en" : "ja");
  const pageContext: PageContext = {
    language,
    w: WORDS[language],
    assets: await assets(),
    otherHref: `${c.req.path}?${other}`,
  };
  const { w } = pageContext;
  const title = o.title(w);
  const style = o.standalone ? String(await pageContext.assets["style.css"].body()) : null;
  const html = (
    <html lang={language}>
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <title>{title}</title>
        {style !== null ? (
          <style dangerouslySetInnerHTML={{ __html: style }} />
        ) : (
          <>
            <link rel="icon" href={pageContext.assets["bag.svg"].path} />
            <link rel="stylesheet" href={pageContext.assets["style.css"].path} />
          </>
        )}
        {o.script && <script type="module" src={pageContext.assets[o.script].path} />}
      </head>
      <body>
        {!o.standalone && <Header pageContext={pageContext} home={o.home ?? "/"} menu={o.menu} />}
        {o.script && (
          <noscript>
            <p class="notice">{w.needsScript}</p>
          </noscript>
        )}
        {body(pageContext)}
      </body>
    </html>
  );
  return routes.send(c, o.status ?? 200, `<!doctype html>${await html}`, {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": o.standalone ? STANDALONE_CSP : PAGE_CSP,
    vary: "accept-language, cookie",
    ...(cookie && { "set-cookie": cookie }),
    ...o.headers,
  });
}
