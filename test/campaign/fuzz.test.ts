/**
 * Five minutes of what test/fuzz.test.ts does for twenty seconds, or FUZZ_MS; one seed, or those of FUZZ_SEEDS=1,2,3.
 */
import { expect, it } from "vitest";
import { anySeed } from "../../src/local/random.ts";
import { fuzz } from "../fuzz.ts";
import { replayCommand } from "../replay.ts";

const MS = Number(process.env.FUZZ_MS ?? 300_000);
const seeds = process.env.FUZZ_SEEDS?.split(",").map(Number) ?? [anySeed()];

it.each(seeds)(
  "seed %i: every answer is a documented one and nothing breaks",
  async (seed) => {
    console.log(`replay: ${replayCommand({ FUZZ_SEEDS: seed, FUZZ_MS: MS }, "vitest.campaign.config.ts")}`);
    const { asked } = await fuzz(seed, MS, console.log);
    expect(asked).toBeGreaterThan(1_000);
  },
  MS + 120_000,
);
