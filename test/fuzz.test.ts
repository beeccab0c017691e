/** A short run of another seed each time; five minutes are in `npm run test:campaign`. */
import { expect, it } from "vitest";
import { fuzz } from "./fuzz.ts";
import { replayCommand, seedOfRun } from "./replay.ts";

const seed = seedOfRun();

it(`whatever is sent to any documented route, the answer is a documented one and nothing breaks (seed ${seed})`, async () => {
  console.log(`replay: ${replayCommand({ SEED: seed })}`);
  const { asked } = await fuzz(seed, 12_000, console.log);
  expect(asked).toBeGreaterThan(100);
}, 120_000);
