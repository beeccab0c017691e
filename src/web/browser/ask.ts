/** Asking before acting: what is going to happen, what it needs to know, and yes or no. */
import { Refused, w } from "./admin.ts";
import { find, make, newKey, say } from "./dom.ts";

export interface Question {
  title: string;
  words?: string;
  fields?: Array<{ name: string; label: string; type: "text" | "number" | "checkbox"; value?: string }>;
  /** Throws to keep the question open with what went wrong. */
  act(values: Record<string, string>, key: string): Promise<unknown>;
  /** What else is to be shown anew then. */
  after?: () => unknown;
}
export function ask(question: Question): void {
  const dialog = find<HTMLDialogElement>("#ask");
  const form = find<HTMLFormElement>("#ask-form");
  const problem = find("#ask-problem");
  const yes = find<HTMLButtonElement>("#ask-yes");
  const key = newKey();
  say(find("#ask-title"), question.title);
  say(find("#ask-words"), question.words ?? "");
  problem.hidden = true;
  yes.disabled = false;
  find("#ask-fields").replaceChildren(
    ...(question.fields ?? []).map((f) => {
      const id = `ask-${f.name}`;
      const input = make("input", {
        id,
        name: f.name,
        type: f.type,
        required: f.type !== "checkbox",
        ...(f.value !== undefined && { value: f.value }),
      });
      return f.type === "checkbox"
        ? make("p", {}, make("label", { for: id }, input, ` ${f.label}`))
        : make("p", { class: "field" }, make("label", { for: id }, f.label), input);
    }),
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    yes.disabled = true;
    problem.hidden = true;
    try {
      const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value)]));
      await question.act(values, key);
      dialog.close();
      say(find("#said"), `${question.title}: ${w.done}`);
      void question.after?.();
    } catch (error) {
      problem.hidden = false;
      say(problem, error instanceof Refused ? error.message : w.noAnswer);
    } finally {
      yes.disabled = false;
    }
  };
  find("#ask-no").onclick = () => dialog.close();
  dialog.showModal();
}
