/** One short campaign of another seed each time; ten long ones are in `npm run test:campaign`. */
import { expect, it } from "vitest";
import { campaign } from "./nemesis.ts";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

it(`after faults drawn from a seed, real processes and links, the books balance (seed ${seed})`, async () => {
  const v = await campaign(seed, 8_000, () => {});
  console.log(
    `seed ${seed}: ${v.done.join(", ")}; ${v.confirmed} confirmed, ${v.lost} holds lost and told so; ${v.memory}`,
  );
  expect(v.faults, `SEED=${seed} npx vitest run test/nemesis.test.ts`).toEqual([]);
}, 300_000);
