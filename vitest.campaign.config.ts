import { defineConfig } from "vitest/config";
import base from "./vitest.config.ts";

/** `npm run test:campaign`: what takes longer than a landing may: every crash point, pairs of them, broken builds, seeds of the nemesis. */
export default defineConfig({
  test: { ...base.test, include: ["test/campaign/**/*.test.ts"], exclude: [], maxWorkers: 1 },
});
