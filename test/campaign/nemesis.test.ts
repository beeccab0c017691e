/** Ten seeds, or those of SEEDS=1,2,3. */
import { expect, it } from "vitest";
import { anySeed } from "../../src/local/random.ts";
import { campaign } from "../nemesis.ts";
import { replayCommand } from "../replay.ts";

const MS = Number(process.env.CAMPAIGN_MS ?? 20_000);
const seeds = process.env.SEEDS?.split(",").map(Number) ?? Array.from({ length: 10 }, anySeed);

it.each(seeds)(
  "seed %i: after any faults the books balance",
  async (seed) => {
    const { CAMPAIGN_FAULTS } = process.env;
    const replay = replayCommand({ SEEDS: seed, CAMPAIGN_MS: MS, CAMPAIGN_FAULTS }, "vitest.campaign.config.ts");
    console.log(`replay: ${replay}`);
    const v = await campaign(seed, MS, console.log);
    console.log(`seed ${seed}: ${v.done.length} faults, ${v.confirmed} confirmed, ${v.lost} holds lost and told so`);
    expect(v.faults, replay).toEqual([]);
  },
  400_000,
);
