/** Small helpers of the pages' scripts. Text is only ever set as text. */
import type { Language } from "../../domain/language.ts";

export const language = (document.documentElement.lang === "ja" ? "ja" : "en") as Language;

/** The element, which must be there. */
export function find<T extends HTMLElement = HTMLElement>(selector: string, within: ParentNode = document): T {
  const found = within.querySelector<T>(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return found;
}

type Attributes = Record<string, string | boolean | ((event: Event) => void)>;

/** `make("td", { class: "n" }, "12")` */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Array<Node | string>
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Writes only what is different: a screen reader is told of changes, and a press must not lose its button. */
export function say(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Keeps the options of a select in line with a list, without taking the choice away. */
export function fillSelect(
  select: HTMLSelectElement,
  options: Array<[value: string, label: string]>,
  value: string,
): void {
  const text = JSON.stringify(options);
  if (select.dataset.options !== text) {
    select.dataset.options = text;
    select.replaceChildren(...options.map(([v, label]) => make("option", { value: v }, label)));
  }
  if (select.value !== value) select.value = value;
}

/** Rows by key: a row that is there is changed in place, so that a button is never taken from under a finger. */
export function fillRows(
  body: HTMLElement,
  rows: Array<{ key: string; cells: string[]; actions?: () => HTMLElement[] }>,
  empty = "",
): void {
  if (rows.length === 0 && empty !== "") {
    body.replaceChildren(make("tr", { "data-key": "empty" }, make("td", { colspan: "9", class: "fine" }, empty)));
    return;
  }
  const before = new Map(
    [...body.children].map((tr) => [(tr as HTMLElement).dataset.key ?? "", tr as HTMLTableRowElement]),
  );
  for (const [i, row] of rows.entries()) {
    let tr = before.get(row.key);
    before.delete(row.key);
    if (!tr) {
      tr = make(
        "tr",
        { "data-key": row.key },
        make("th", { scope: "row" }),
        ...row.cells.slice(1).map(() => make("td")),
      );
      if (row.actions) tr.append(make("td", { class: "do" }, ...row.actions()));
    }
    for (const [n, text] of row.cells.entries()) say(tr.children[n] as HTMLElement, text);
    if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] ?? null);
  }
  for (const old of before.values()) old.remove();
}

/** 63_000 -> `1:03` */
export function minutesAndSeconds(ms: number): string {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const two = (n: number) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** What a storage kept, or null where there is none or none is allowed. */
export function kept<T>(storage: Storage, name: string): T | null {
  try {
    return JSON.parse(storage.getItem(name) ?? "null") as T | null;
  } catch {
    return null;
  }
}
export function keep(storage: Storage, name: string, value: unknown): void {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, JSON.stringify(value));
  } catch {
    // Without a storage the page works until it is closed.
  }
}

/**
 * One press, one effect, however often it is sent. `randomUUID` is only there on secure origins; this is there
 * everywhere.
 */
export const newKey = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
