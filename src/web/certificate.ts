/** The end-of-sale certificate: the audit as a page that an operator can print. */
import { html } from "hono/html";
import type { Audit } from "../recover/audit.ts";
import type { Sale } from "../sales.ts";

const STYLE = `body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{border:1px solid #bbb;padding:.4rem .6rem;text-align:right}th:first-child,td:first-child{text-align:left}.ok{color:#0a6b2d}.bad{color:#b00020;font-weight:700}`;

export function certificatePage(sale: Sale, a: Audit): string {
  const count = (n: number) => html`<td class="${n === 0 ? "ok" : "bad"}">${n}</td>`;
  const questions: Array<[string, number]> = [
    ["Units that the books cannot explain", a.items.reduce((sum, i) => sum + Math.abs(i.difference), 0)],
    ["Charges without an order", a.charges.withoutOrder],
    ["Reservations charged twice", a.charges.twice],
    ["Charges of another amount than the order", a.charges.amountDiffers],
    ["Orders without a charge", a.orders.withoutCharge],
    ["Mails without an order", a.mails.withoutOrder],
  ];
  return `<!doctype html>${html`<html lang="en">
    <head><meta charset="utf-8"><title>Certificate: ${sale.name}</title><style>${STYLE}</style></head>
    <body>
      <h1>${sale.name}</h1>
      <p>Sale ${a.saleId}, read ${a.at}</p>
      <p class="${a.ok ? "ok" : "bad"}">${a.ok ? "The books balance." : "The books do not balance."}</p>
      <h2>Stock: granted = free + held + claimed</h2>
      <table>
        <tr><th>Item</th><th>Granted</th><th>Free</th><th>Held</th><th>Claimed</th><th>Sold</th><th>Difference</th></tr>
        ${a.items.map((i) => html`<tr><td>${i.name} (${i.sku})</td><td>${i.granted}</td><td>${i.free}</td><td>${i.held}</td><td>${i.claimed}</td><td>${i.sold}</td>${count(i.difference)}</tr>`)}
      </table>
      <h2>Where every unit went: opening stock + top-ups = sold + refunded and not put back + in payment + held + free</h2>
      <table>
        <tr><th>Item</th><th>Opening</th><th>Top-ups</th><th>Sold</th><th>Refunded, not put back</th><th>In payment</th><th>Held</th><th>Free</th><th>of these put back after a refund</th><th>Unexplained</th></tr>
        ${a.items.map((i) => html`<tr><td>${i.name}</td><td>${i.opening}</td><td>${i.toppedUp}</td><td>${i.sold}</td><td>${i.notPutBack}</td><td>${i.inPayment}</td><td>${i.held}</td><td>${i.free}</td><td>${i.putBack}</td>${count(i.opening + i.toppedUp - i.sold - i.notPutBack - i.inPayment - i.held - i.free)}</tr>`)}
      </table>
      <h2>Money, orders, mails</h2>
      <table>${questions.map(([what, n]) => html`<tr><td>${what}</td>${count(n)}</tr>`)}</table>
      <table>
        <tr><td>Charges captured, not refunded</td><td>${a.charges.captured}</td></tr>
        <tr><td>Charges refunded</td><td>${a.charges.refunded}</td></tr>
        <tr><td>Orders recorded</td><td>${a.orders.recorded}</td></tr>
        <tr><td>Mails sent / queued / refused</td><td>${a.mails.sent} / ${a.mails.queued} / ${a.mails.failed}</td></tr>
        <tr><td>Still open: paying / of them unknown / refunding / journal entries</td><td>${a.open.paying} / ${a.open.unknown} / ${a.open.refunding} / ${a.open.journalLag}</td></tr>
      </table>
    </body></html>`}`;
}
