import { defineConfig } from "vitest/config";
import base from "./vitest.config.ts";

/** `npm run check`: what says within a minute that a change is sound enough to go on; the rest is `npm test`. */
const FAST = [
  "openapi",
  "neighbours",
  "scripts",
  "docs",
  "defects",
  "citations",
  "style",
  "reference",
  "doors",
  "cockpit",
];

export default defineConfig({
  test: { ...base.test, include: FAST.map((name) => `test/${name}.test.ts`) },
});
