/** What the confirmation mail says, and the SMTP link that carries it. */

import { createTransport } from "nodemailer";
import { inLanguage, type Language } from "../domain/language.ts";
import { formatInstant, formatMoney, taxesOf } from "../domain/money.ts";
import type { Contact, OrderLine, SaleDetails, ShipTo } from "../domain/order.ts";

export interface MailOrder {
  id: string;
  amount: number;
  currency: string;
  contact: Contact;
  shipTo: ShipTo | null;
  gateway: string;
  confirmedAt: Date;
  lines: OrderLine[];
}
/** What the mail takes from the order's sale. */
export interface MailSale {
  name: string;
  details: SaleDetails;
  items: Map<string, { taxPercent: number }>;
}

const WORDS = {
  ja: {
    subject: (id: string) => `ご注文を承りました（${id}）`,
    greeting: (name: string) => `${name} 様`,
    thanks: "ご注文ありがとうございます。以下の内容で承りました。",
    customer: "お客",
    order: "ご注文番号",
    date: "ご注文日時",
    shipping: "送料",
    total: "合計（税込）",
    tax: (percent: number, amount: string) => `うち消費税（${percent}%対象 ${amount}）`,
    reduced: "※ は軽減税率対象です。",
    payment: "お支払い",
    paid: "お支払い済みです。",
    cod: "商品お届け時（代引き）にお支払いください。",
    shipTo: "お届け先",
    delivery: "お届け時期",
    cancellation: "キャンセル・返品",
    invoiceNumber: "登録番号",
  },
  en: {
    subject: (id: string) => `Your order ${id} is confirmed`,
    greeting: (name: string) => `Dear ${name},`,
    thanks: "Thank you. Your order is confirmed:",
    customer: "customer",
    order: "Order",
    date: "Ordered",
    shipping: "Shipping",
    total: "Total (tax included)",
    tax: (percent: number, amount: string) => `of which consumption tax (${percent}% of ${amount})`,
    reduced: "* reduced tax rate",
    payment: "Payment",
    paid: "Paid.",
    cod: "Please pay on delivery.",
    shipTo: "Ship to",
    delivery: "Delivery",
    cancellation: "Cancellation and returns",
    invoiceNumber: "Invoice registration number",
  },
};
/** Japan's reduced rate (軽減税率), which an invoice has to mark. */
const REDUCED_PERCENT = 8;

const LINK = /(?:[a-z][a-z0-9+.-]*:\/\/|www\.)\S+|\S+@\S+\.\S+|\b(?:[a-z0-9-]{2,}\.)+[a-z]{2,}\b(?:[/:?#]\S*)?/giu;
/**
 * A shopper's own words in a mail that this shop vouches for: no links, and no lines of their own. Else anyone could
 * send any text to any address by buying in another's name.
 */
const harmless = (text: string) =>
  text
    .replace(/[\p{C}\p{Zl}\p{Zp}\s]+/gu, " ")
    .replace(LINK, "")
    .replace(/ {2,}/g, " ")
    .trim();

const escapeHtml = (text: string) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

type Row = readonly [label: string, value: string];
interface Said {
  prices: Row[];
  facts: Row[];
  foot: string[];
}

/** The rows of the mail, the same for both of its forms. */
function whatToSay(order: MailOrder, sale: MailSale, language: Language): Said {
  const w = WORDS[language];
  const { shop, terms, taxPercent } = sale.details;
  const money = (n: number) => formatMoney(n, order.currency, language);
  const rateOf = (sku: string) => sale.items.get(sku)?.taxPercent ?? taxPercent;
  const mark = language === "ja" ? " ※" : " *";
  const isReduced = (sku: string) => order.currency === "JPY" && rateOf(sku) === REDUCED_PERCENT;
  const goods = order.lines.map((l) => ({ amount: l.quantity * l.unitPrice, taxPercent: rateOf(l.sku) }));
  // What is left of the amount that was charged: the sale's fee at the time.
  const shippingFee = order.amount - goods.reduce((sum, g) => sum + g.amount, 0);
  const taxes = taxesOf([...goods, { amount: shippingFee, taxPercent }]);
  const address = harmless([order.shipTo?.postalCode, order.shipTo?.address].filter(Boolean).join(" "));
  const optional = (label: string, value: string | undefined): Row[] => (value ? [[label, value]] : []);
  return {
    prices: [
      ...order.lines.map(
        (l): Row => [`${l.name} × ${l.quantity}${isReduced(l.sku) ? mark : ""}`, money(l.quantity * l.unitPrice)],
      ),
      ...(shippingFee > 0 ? [[w.shipping, money(shippingFee)] as const] : []),
      [w.total, money(order.amount)],
      ...taxes.map((t): Row => [w.tax(t.percent, money(t.amount)), money(t.tax)]),
    ],
    facts: [
      [w.order, order.id],
      [w.date, formatInstant(order.confirmedAt, order.currency, language)],
      [w.payment, order.gateway === "cod" ? w.cod : w.paid],
      ...optional(w.shipTo, address),
      ...optional(w.delivery, inLanguage(terms?.delivery, language)),
      ...optional(w.cancellation, inLanguage(terms?.cancellation, language)),
    ],
    foot: [
      ...(order.lines.some((l) => isReduced(l.sku)) ? [w.reduced] : []),
      ...[inLanguage(shop?.name, language), inLanguage(shop?.address, language), shop?.phone, shop?.email].filter(
        (t) => t !== undefined,
      ),
      ...(shop?.invoiceNumber ? [`${w.invoiceNumber}: ${shop.invoiceNumber}`] : []),
    ],
  };
}

/** The confirmation of an order in the sale's language or the shopper's, as plain text and as HTML. */
export function confirmationMail(
  order: MailOrder,
  sale: MailSale,
  tongue: string,
): { subject: string; text: string; html: string } {
  const language = tongue === "ja" ? "ja" : "en";
  const w = WORDS[language];
  const { prices, facts, foot } = whatToSay(order, sale, language);
  const greeting = w.greeting(harmless(order.contact.name) || w.customer);
  const line = ([label, value]: Row) => `${label}: ${value}`;
  const text = [greeting, "", w.thanks, "", sale.name, ...facts.map(line), "", ...prices.map(line), "", ...foot]
    .join("\n")
    .trimEnd();
  const table = (rows: Row[], right: boolean) => {
    const [first, second] = right
      ? ["", "text-align:right;white-space:nowrap"]
      : ["white-space:nowrap", "word-break:break-word"];
    const cells = rows.map(
      ([a, b]) =>
        `<tr><td valign="top" style="${first}">${escapeHtml(a)}</td><td valign="top" style="${second}">${escapeHtml(b)}</td></tr>`,
    );
    return `<table cellpadding="4" role="presentation" style="max-width:40em">${cells.join("")}</table>`;
  };
  const html = `<!doctype html><html lang="${language}"><head><meta charset="utf-8"><title>${escapeHtml(w.subject(order.id))}</title></head><body style="font-family:sans-serif;color:#1a1a1a"><p>${escapeHtml(greeting)}</p><p>${w.thanks}</p><h1 style="font-size:18px">${escapeHtml(sale.name)}</h1>${table(facts, false)}<hr>${table(prices, true)}<hr><p>${foot.map(escapeHtml).join("<br>")}</p></body></html>`;
  return { subject: w.subject(order.id), text: `${text}\n`, html };
}

export interface Mailer {
  /** Resolves when the server has accepted it. `id` makes the Message-ID, the same however often it is sent. */
  send(mail: { id: string; to: string; subject: string; text: string; html: string }): Promise<void>;
  close(): void;
}

/**
 * A refusal of this very mail (5xx): sending again will not help. Anything else may have been accepted: sent again with
 * the same id.
 */
export const isRefused = (error: unknown) => ((error as { responseCode?: number }).responseCode ?? 0) >= 500;

export function smtpMailer(url: string, from: string, connectionsMax: number): Mailer {
  const transport = createTransport({
    url,
    pool: true,
    maxConnections: connectionsMax,
    maxMessages: 100,
    connectionTimeout: 5_000,
    greetingTimeout: 5_000,
    socketTimeout: 15_000,
    // A mail is made of text alone; nothing in it may fetch a file or an address.
    disableFileAccess: true,
    disableUrlAccess: true,
  } as Parameters<typeof createTransport>[0]);
  const domain = /@([^>\s]+)/.exec(from)?.[1] ?? "localhost";
  return {
    async send(m) {
      await transport.sendMail({
        from,
        to: m.to,
        subject: m.subject,
        text: m.text,
        html: m.html,
        messageId: `<${m.id}@${domain}>`,
      });
    },
    close: () => transport.close(),
  };
}
