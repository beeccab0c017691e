import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

/** The longest files begin first, so that none is left to run alone at the end. */
const LONGEST = [
  "crash.test.ts",
  "pages.browser.test.ts",
  "soak.test.ts",
  "shop.browser.test.ts",
  "lost-commit.test.ts",
  "local.test.ts",
  "restored.test.ts",
  "nemesis.test.ts",
  "contract.test.ts",
  "recover.test.ts",
  "sale.test.ts",
  "docs.test.ts",
];
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = (f: TestSpecification) => {
      const at = LONGEST.findIndex((name) => f.moduleId.endsWith(`/${name}`));
      return at < 0 ? LONGEST.length : at;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  test: {
    include: ["test/*.test.ts"],
    globalSetup: ["test/setup.ts"],
    pool: "forks",
    sequence: { sequencer: LongestFirst },
    // Each file has servers of its own; two at a time keep two cores busy.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // A guarantee that holds only sometimes does not hold.
    retry: 0,
    allowOnly: false,
  },
});
