/** Money, taxes and days as people read them. Used by mails, pages and the pages' own scripts; depends on nothing. */

/** Money in minor units as people write it. */
export function formatMoney(amount: number, currency: string, language: string): string {
  const format = new Intl.NumberFormat(language, { style: "currency", currency });
  return format.format(amount / 10 ** (format.resolvedOptions().maximumFractionDigits ?? 0));
}

/** An instant on the shop's wall: Japan's clock where prices are in yen, else UTC; the zone is said. */
export function formatInstant(instant: string | number | Date, currency: string, language: string): string {
  const timeZone = currency === "JPY" ? "Asia/Tokyo" : "UTC";
  return (
    new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short", timeZone }).format(new Date(instant)) + (timeZone === "UTC" ? " UTC" : " JST")
  );
}

/**
 * Taxes contained in tax-included amounts, one row a rate, highest rate first. Rounded down once per rate, not per line, as a
 * qualified invoice must (適格請求書: 消費税法 第五十七条の四). A rate of 0 has no row.
 */
export function taxesOf(parts: Array<{ amount: number; taxPercent: number }>): Array<{ percent: number; amount: number; tax: number }> {
  const byRate = new Map<number, number>();
  for (const p of parts) if (p.taxPercent > 0) byRate.set(p.taxPercent, (byRate.get(p.taxPercent) ?? 0) + p.amount);
  return [...byRate]
    .filter(([, amount]) => amount > 0)
    .sort(([a], [b]) => b - a)
    .map(([percent, amount]) => ({ percent, amount, tax: Math.floor((amount * percent) / (100 + percent)) }));
}
