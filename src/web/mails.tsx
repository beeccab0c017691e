/** @jsxImportSource hono/jsx */
/** The mails of local mode, and what the confirmation of a sale will look like. */

import type { FC } from "hono/jsx";
import type { StoredMail } from "../domain/order.ts";
import type { Sale } from "../domain/sale.ts";
import { confirmationMail } from "../notify/mail.ts";
import type { PageContext } from "./layout.tsx";

/** A mail's HTML is shown in a frame of its own that may run nothing and load nothing. */
export const MAIL_CSP = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'";

export const MailsPage: FC<{ pageContext: PageContext; mails: StoredMail[]; sales: Sale[] }> = ({
  pageContext: { w, language },
  mails,
  sales,
}) => (
  <main id="main" class="wide">
    <h1>{w.mailbox}</h1>
    <p>{w.mailboxLead(mails.length)}</p>
    <section class="scroll" tabindex={0} aria-label={w.mailbox}>
      <table>
        <thead>
          <tr>
            <th scope="col">{w.at}</th>
            <th scope="col">{w.to}</th>
            <th scope="col">{w.subject}</th>
          </tr>
        </thead>
        <tbody>
          {mails.map((m) => (
            <tr>
              <td>{m.at}</td>
              <td>{m.to}</td>
              <td>
                <a href={`/mails/${m.id}`}>{m.subject}</a>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
    <h2>{w.mailPreview}</h2>
    <ul>
      {sales.map((s) => (
        <li>
          <a href={`/mails/preview/${s.id}?lang=${language}`}>{s.name}</a>
        </li>
      ))}
    </ul>
  </main>
);

export const MailPage: FC<{
  pageContext: PageContext;
  mail: Pick<StoredMail, "subject" | "text"> & { about: string };
  htmlHref: string;
}> = ({ pageContext: { w }, mail, htmlHref }) => (
  <main id="main" class="wide">
    <p>
      <a href="/mails">{w.mailbox}</a>
    </p>
    <h1>{mail.subject}</h1>
    <p class="fine">{mail.about}</p>
    <h2>{w.asHtml}</h2>
    <iframe src={htmlHref} title={`${w.asHtml}: ${mail.subject}`} class="mail" />
    <h2>{w.asText}</h2>
    <pre>{mail.text}</pre>
  </main>
);

/** The mail of an order of one of each of the first items, with the sale's own texts. */
export function previewOf(sale: Sale, language: string): { subject: string; text: string; html: string } {
  const lines = [...sale.items.values()]
    .slice(0, 3)
    .map((i) => ({ sku: i.sku, name: i.name, unitPrice: i.unitPrice, quantity: 1 }));
  const amount = lines.reduce((sum, l) => sum + l.unitPrice * l.quantity, sale.shippingFee);
  const order = {
    id: "ord_PREVIEW",
    amount,
    currency: sale.currency,
    gateway: sale.gateways[0] ?? "sandbox",
    confirmedAt: new Date(),
    lines,
    contact: { name: "山田 花", email: "hana@example.jp" },
    shipTo: {
      postalCode: "150-0001",
      address: language === "ja" ? "東京都渋谷区神宮前 1-2-3" : "1-2-3 Jingumae, Shibuya, Tokyo",
    },
  };
  return confirmationMail(order, sale, language);
}
