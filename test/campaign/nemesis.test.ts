/** Ten seeds, or those of SEEDS=1,2,3. */
import { expect, it } from "vitest";
import { campaign } from "../nemesis.ts";

const MS = Number(process.env.CAMPAIGN_MS ?? 20_000);
const seeds =
  process.env.SEEDS?.split(",").map(Number) ?? Array.from({ length: 10 }, () => Math.floor(Math.random() * 2 ** 31));

it.each(seeds)(
  "seed %i: after any faults the books balance",
  async (seed) => {
    console.log(`seed ${seed}`);
    const v = await campaign(seed, MS, console.log);
    console.log(`seed ${seed}: ${v.done.length} faults, ${v.confirmed} confirmed, ${v.lost} holds lost and told so`);
    expect(v.faults, `seed ${seed}: SEEDS=${seed} npm run test:campaign`).toEqual([]);
  },
  400_000,
);
