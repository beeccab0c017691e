/** A short run of another seed each time; five minutes are in `npm run test:campaign`. */
import { expect, it } from "vitest";
import { fuzz } from "./fuzz.ts";

const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));

it(`whatever is sent to any documented route, the answer is a documented one and nothing breaks (seed ${seed})`, async () => {
  console.log(`seed ${seed}: FUZZ_SEED=${seed} npx vitest run test/fuzz.test.ts`);
  const { asked } = await fuzz(seed, 20_000, console.log);
  expect(asked).toBeGreaterThan(100);
}, 120_000);
