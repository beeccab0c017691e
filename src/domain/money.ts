/** Money, taxes and days as people read them. Used by mails, pages and the pages' own scripts; depends on nothing. */

/** Made once for each language and currency: making one takes longer than a thousand uses. */
const formats = new Map<string, unknown>();
function formatOf<T>(key: string, make: () => T): T {
  if (!formats.has(key)) formats.set(key, make());
  return formats.get(key) as T;
}

/** Money in minor units as people write it. */
export function formatMoney(amount: number, currency: string, language: string): string {
  const format = formatOf(
    `money ${language} ${currency}`,
    () => new Intl.NumberFormat(language, { style: "currency", currency }),
  );
  return format.format(amount / 10 ** (format.resolvedOptions().maximumFractionDigits ?? 0));
}

/** An instant as the shop's clock shows it: Japan's time where prices are in yen, else UTC; with the zone. */
export function formatInstant(instant: string | number | Date, currency: string, language: string): string {
  const timeZone = currency === "JPY" ? "Asia/Tokyo" : "UTC";
  const format = formatOf(
    `instant ${language} ${timeZone}`,
    () => new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short", timeZone }),
  );
  return format.format(new Date(instant)) + (timeZone === "UTC" ? " UTC" : " JST");
}

/**
 * Taxes contained in tax-included amounts, one row a rate, highest rate first. Rounded down once per rate, not per
 * line, as a qualified invoice must (適格請求書: 消費税法 第五十七条の四). A rate of 0 has no row.
 */
export function taxesOf(
  parts: Array<{ amount: number; taxPercent: number }>,
): Array<{ percent: number; amount: number; tax: number }> {
  const byRate = new Map<number, number>();
  for (const p of parts) if (p.taxPercent > 0) byRate.set(p.taxPercent, (byRate.get(p.taxPercent) ?? 0) + p.amount);
  return [...byRate]
    .filter(([, amount]) => amount > 0)
    .sort(([a], [b]) => b - a)
    .map(([percent, amount]) => ({ percent, amount, tax: Math.floor((amount * percent) / (100 + percent)) }));
}
