import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { DEFECTS } from "./campaign/defects.ts";

const ROOT = new URL("../", import.meta.url);

describe("each broken build of the campaign", () => {
  it.each(DEFECTS.flatMap((d) => d.edits.map((e) => [d.name, e] as const)))(
    "%s: takes out a text that stands in the sources",
    async (_, { file, from, to }) => {
      const source = await readFile(new URL(file, ROOT), "utf8");
      expect(source.includes(from), `${file} has no longer: ${from}`).toBe(true);
      expect(to).not.toBe(from);
    },
  );
});
