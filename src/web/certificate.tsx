/** @jsxImportSource hono/jsx */
/** The end-of-sale certificate: the audit as a page that an operator can print. */

import type { Context as Http } from "hono";
import type { FC } from "hono/jsx";
import type { Language } from "../domain/language.ts";
import { formatInstant } from "../domain/money.ts";
import type { Sale } from "../domain/sale.ts";
import type { Routes } from "../http/api.ts";
import type { Audit } from "../recover/audit.ts";
import { type PageOptions, page } from "./layout.tsx";

const WORDS = {
  en: {
    read: "Sale, read",
    balance: "The books balance.",
    noBalance: "The books do not balance.",
    stock: "Stock: granted = free + held + claimed",
    stockHeads: ["Item", "Granted", "Free", "Held", "Claimed", "Sold", "Difference"],
    units:
      "Where every unit went: opening stock + top-ups = sold + refunded and not put back + in payment + held + free",
    unitHeads: [
      "Item",
      "Opening",
      "Top-ups",
      "Sold",
      "Refunded, not put back",
      "In payment",
      "Held",
      "Free",
      "of these put back after a refund",
      "Unexplained",
    ],
    money: "Money, orders, mails",
    questions: [
      "Units that the books cannot explain",
      "Charges without an order",
      "Reservations charged twice",
      "Charges of another amount than the order",
      "Orders without a charge",
      "Mails without an order",
    ],
    rows: [
      "Charges captured, not refunded",
      "Charges refunded",
      "Orders recorded",
      "Mails sent / queued / refused",
      "Still open: paying / of them unknown / refunding / journal entries",
    ],
  },
  ja: {
    read: "セール・読み取り",
    balance: "帳簿は一致しています。",
    noBalance: "帳簿が一致していません。",
    stock: "在庫: 総数 = 空き + 取り置き + 引当済み",
    stockHeads: ["商品", "総数", "空き", "取り置き", "引当済み", "販売済み", "差異"],
    units: "すべての商品の行方: 開始時在庫 + 追加 = 販売済み + 返金（在庫に戻さず） + 支払い中 + 取り置き + 空き",
    unitHeads: [
      "商品",
      "開始時",
      "追加",
      "販売済み",
      "返金（戻さず）",
      "支払い中",
      "取り置き",
      "空き",
      "うち返金後に在庫へ戻した数",
      "説明のつかない数",
    ],
    money: "請求・注文・メール",
    questions: [
      "説明のつかない点数",
      "注文のない請求",
      "二重に請求された予約",
      "注文と金額の違う請求",
      "請求のない注文",
      "注文のないメール",
    ],
    rows: [
      "請求（返金を除く）",
      "返金済みの請求",
      "記録された注文",
      "メール 送信済み / 待ち / 拒否",
      "未完了: 支払い中 / うち不明 / 返金中 / ジャーナル",
    ],
  },
};

const Count: FC<{ n: number }> = ({ n }) => <td class={n === 0 ? "ok" : "bad"}>{n}</td>;
const Heads: FC<{ heads: string[] }> = ({ heads }) => (
  <thead>
    <tr>
      {heads.map((h) => (
        <th scope="col">{h}</th>
      ))}
    </tr>
  </thead>
);
const Row: FC<{ label: string; cells: number[] }> = ({ label, cells }) => (
  <>
    <th scope="row">{label}</th>
    {cells.map((n) => (
      <td>{n}</td>
    ))}
  </>
);

/** The page as an answer, for the cockpit's link and for `Accept: text/html`. */
export const certificateAnswer = (
  c: Http,
  routes: Routes,
  sale: Sale,
  audit: Audit,
  more: Pick<PageOptions, "menu" | "home" | "standalone"> = {},
): Promise<Response> =>
  page(c, routes, { title: (w) => `${w.certificate}: ${sale.name}`, home: "/admin", ...more }, (pageContext) => (
    <CertificatePage language={pageContext.language} sale={sale} audit={audit} />
  ));

const CertificatePage: FC<{ language: Language; sale: Sale; audit: Audit }> = ({ language, sale, audit: a }) => {
  const w = WORDS[language];
  const answers = [
    a.items.reduce((sum, i) => sum + Math.abs(i.difference), 0),
    a.charges.withoutOrder,
    a.charges.twice,
    a.charges.amountDiffers,
    a.orders.withoutCharge,
    a.mails.withoutOrder,
  ];
  const values = [
    a.charges.captured,
    a.charges.refunded,
    a.orders.recorded,
    `${a.mails.sent} / ${a.mails.queued} / ${a.mails.failed}`,
    `${a.open.paying} / ${a.open.unknown} / ${a.open.refunding} / ${a.open.journalLag}`,
  ];
  return (
    <main id="main" class="wide certificate">
      <h1>{sale.name}</h1>
      <p>
        {w.read}: {a.saleId}, {formatInstant(a.at, sale.currency, language)} ({a.at})
      </p>
      <p class={`verdict ${a.ok ? "ok" : "bad"}`}>{a.ok ? w.balance : w.noBalance}</p>
      <h2>{w.stock}</h2>
      <section class="scroll" tabindex={0} aria-label={w.stock}>
        <table>
          <Heads heads={w.stockHeads} />
          <tbody>
            {a.items.map((i) => (
              <tr>
                <Row label={`${i.name} (${i.sku})`} cells={[i.granted, i.free, i.held, i.claimed, i.sold]} />
                <Count n={i.difference} />
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      <h2>{w.units}</h2>
      <section class="scroll" tabindex={0} aria-label={w.units}>
        <table>
          <Heads heads={w.unitHeads} />
          <tbody>
            {a.items.map((i) => (
              <tr>
                <Row
                  label={i.name}
                  cells={[i.opening, i.toppedUp, i.sold, i.notPutBack, i.inPayment, i.held, i.free, i.putBack]}
                />
                <Count n={i.opening + i.toppedUp - i.sold - i.notPutBack - i.inPayment - i.held - i.free} />
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      <h2>{w.money}</h2>
      <table>
        <tbody>
          {w.questions.map((question, i) => (
            <tr>
              <th scope="row">{question}</th>
              <Count n={answers[i] ?? Number.NaN} />
            </tr>
          ))}
          {w.rows.map((row, i) => (
            <tr>
              <th scope="row">{row}</th>
              <td>{values[i]}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </main>
  );
};
