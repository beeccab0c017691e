/** The two languages that people are spoken to in. */
export type Language = "ja" | "en";

/** The first of the two in an `Accept-Language` header, by its weights; English when neither is asked for. */
export function preferredLanguage(acceptLanguage: string | undefined): Language {
  const wanted = (acceptLanguage ?? "")
    .split(",")
    .map((part) => {
      const [tag = "", ...parameters] = part.trim().toLowerCase().split(";");
      const q = parameters.map((p) => /^\s*q=([\d.]+)\s*$/.exec(p)?.[1]).find((v) => v !== undefined);
      return { tongue: tag.split("-")[0], q: q === undefined ? 1 : Number(q) };
    })
    .filter((w) => w.q > 0 && (w.tongue === "ja" || w.tongue === "en"))
    .sort((a, b) => b.q - a.q);
  return wanted[0]?.tongue === "ja" ? "ja" : "en";
}

/** A shop's text in the reader's language. */
export const inLanguage = (
  text: string | { ja: string; en: string } | undefined,
  language: Language,
): string | undefined => (typeof text === "object" ? text[language] : text);
