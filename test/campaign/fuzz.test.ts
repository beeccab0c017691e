/**
 * Five minutes of what test/fuzz.test.ts does for twenty seconds, or FUZZ_MS; one seed, or those of FUZZ_SEEDS=1,2,3.
 */
import { expect, it } from "vitest";
import { fuzz } from "../fuzz.ts";

const MS = Number(process.env.FUZZ_MS ?? 300_000);
const seeds = process.env.FUZZ_SEEDS?.split(",").map(Number) ?? [Math.floor(Math.random() * 2 ** 31)];

it.each(seeds)(
  "seed %i: every answer is a documented one and nothing breaks",
  async (seed) => {
    console.log(`seed ${seed}: FUZZ_SEEDS=${seed} npm run test:campaign -- test/campaign/fuzz.test.ts`);
    const { asked } = await fuzz(seed, MS, console.log);
    expect(asked).toBeGreaterThan(1_000);
  },
  MS + 120_000,
);
