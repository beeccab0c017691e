import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/*.test.ts"],
    globalSetup: ["test/setup.ts"],
    pool: "forks",
    // Each file has servers of its own; two at a time keep two cores busy.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // A guarantee that holds only sometimes does not hold.
    retry: 0,
    allowOnly: false,
  },
});
