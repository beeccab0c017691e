/** What the confirmation mail says, and the SMTP link that carries it. */
import { createTransport } from "nodemailer";
import type { Contact, OrderLine } from "../schema.ts";

export interface MailOrder {
  id: string;
  saleName: string;
  amount: number;
  currency: string;
  shippingFee: number;
  contact: Contact;
  gateway: string;
  lines: OrderLine[];
}

const WORDS = {
  ja: {
    subject: (id: string) => `ご注文を承りました（${id}）`,
    greeting: (name: string) => `${name} 様`,
    thanks: "ご注文ありがとうございます。以下の内容で承りました。",
    order: "ご注文番号",
    shipping: "送料",
    total: "合計（税込）",
    cod: "お支払いは商品お届け時（代引き）です。",
  },
  en: {
    subject: (id: string) => `Your order ${id} is confirmed`,
    greeting: (name: string) => `Dear ${name},`,
    thanks: "Thank you. Your order is confirmed:",
    order: "Order",
    shipping: "Shipping",
    total: "Total (tax included)",
    cod: "Please pay on delivery.",
  },
};

/** Money in minor units as people write it. */
export function formatMoney(amount: number, currency: string, language: string): string {
  const format = new Intl.NumberFormat(language, { style: "currency", currency });
  return format.format(amount / 10 ** (format.resolvedOptions().maximumFractionDigits ?? 0));
}

const escapeHtml = (text: string) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

export function confirmationMail(order: MailOrder, language: string): { subject: string; text: string; html: string } {
  const tongue = language === "ja" ? "ja" : "en";
  const w = WORDS[tongue];
  const money = (n: number) => formatMoney(n, order.currency, tongue);
  const rows = [
    ...order.lines.map((l) => [`${l.name} × ${l.quantity}`, money(l.quantity * l.unitPrice)] as const),
    ...(order.shippingFee > 0 ? [[w.shipping, money(order.shippingFee)] as const] : []),
    [w.total, money(order.amount)] as const,
  ];
  const cod = order.gateway === "cod" ? w.cod : "";
  const text = [w.greeting(order.contact.name), "", w.thanks, "", `${w.order}: ${order.id}`, order.saleName, "", ...rows.map(([a, b]) => `${a}: ${b}`), "", cod]
    .join("\n")
    .trimEnd();
  const table = rows.map(([a, b]) => `<tr><td>${escapeHtml(a)}</td><td style="text-align:right">${escapeHtml(b)}</td></tr>`).join("");
  const html = `<!doctype html><html lang="${tongue}"><body><p>${escapeHtml(w.greeting(order.contact.name))}</p><p>${w.thanks}</p><p>${w.order}: <b>${escapeHtml(order.id)}</b><br>${escapeHtml(order.saleName)}</p><table cellpadding="4">${table}</table><p>${cod}</p></body></html>`;
  return { subject: w.subject(order.id), text: `${text}\n`, html };
}

export interface Mailer {
  /** Resolves when the server has accepted it. `id` makes the Message-ID, the same however often it is sent. */
  send(mail: { id: string; to: string; subject: string; text: string; html: string }): Promise<void>;
  close(): void;
}

/** A refusal of this very mail (5xx): sending again will not help. Anything else may have been accepted: sent again with the same id. */
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
      await transport.sendMail({ from, to: m.to, subject: m.subject, text: m.text, html: m.html, messageId: `<${m.id}@${domain}>` });
    },
    close: () => transport.close(),
  };
}
