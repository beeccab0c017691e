/** One short campaign of another seed each time; ten long ones are in `npm run test:campaign`. */
import { expect, it } from "vitest";
import { campaign } from "./nemesis.ts";
import { replayCommand, seedOfRun } from "./replay.ts";

const seed = seedOfRun();

it(`after faults drawn from a seed, real processes and links, the books balance (seed ${seed})`, async () => {
  const replay = replayCommand({ SEED: seed, CAMPAIGN_FAULTS: process.env.CAMPAIGN_FAULTS });
  console.log(`replay: ${replay}`);
  const v = await campaign(seed, 8_000, () => {});
  console.log(
    `seed ${seed}: ${v.done.join(", ")}; ${v.confirmed} confirmed, ${v.lost} holds lost and told so; ${v.memory}`,
  );
  expect(v.faults, replay).toEqual([]);
}, 300_000);
