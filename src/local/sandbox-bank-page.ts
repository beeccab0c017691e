/** The bank's page of the sandbox gateway, on which a shopper approves a payment (3-D Secure). */
import { html, raw } from "hono/html";
import type { Language } from "../domain/language.ts";
import { formatMoney } from "../domain/money.ts";

const BANK = {
  ja: {
    title: "サンドボックス銀行",
    lead: "練習用の本人認証ページです。実際の請求はありません。",
    pay: "お支払い金額:",
    approve: "承認する",
    refuse: "拒否する",
    nothing: "承認するものはありません。",
    thanks: "ありがとうございます。このページを閉じてください。",
  },
  en: {
    title: "Sandbox bank",
    lead: "An approval page for trying out. Nothing is really charged.",
    pay: "To pay:",
    approve: "Approve",
    refuse: "Refuse",
    nothing: "There is nothing to approve.",
    thanks: "Thank you. You may close this page.",
  },
};
const BANK_STYLE = `body{font:18px/1.6 system-ui,sans-serif;max-width:28rem;margin:3rem auto;padding:0 1rem;color:#1a2a3a}
button{font:inherit;padding:.6rem 1.4rem;min-height:2.75rem;border:1px solid #1a2a3a;border-radius:.5rem;background:#fff;color:#1a2a3a}button[value=approve]{background:#1a4a7a;color:#fff}`;
const page = (language: Language, body: unknown) =>
  html`<!doctype html><html lang="${language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${BANK[language].title}</title><style>${raw(BANK_STYLE)}</style></head><body><main><h1>${BANK[language].title}</h1><p>${BANK[language].lead}</p>${body}</main></body></html>`;

export const nothingToApprove = (language: Language) => page(language, html`<p>${BANK[language].nothing}</p>`);
export const thanks = (language: Language) => page(language, html`<p>${BANK[language].thanks}</p>`);
export function approvalPage(language: Language, charge: { amount: number; currency: string }) {
  const w = BANK[language];
  return page(
    language,
    html`<p>${w.pay} <strong>${formatMoney(charge.amount, charge.currency, language)}</strong></p>
        <form method="post"><button name="answer" value="approve">${w.approve}</button> <button name="answer" value="refuse">${w.refuse}</button></form>`,
  );
}
