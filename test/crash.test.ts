/**
 * Every crash point once: each label at one of its phases here, at all of them and in pairs in `npm run test:campaign`.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import { PHASES } from "../src/crash-points.ts";
import { crashRun, type Lane, labels, openLane } from "./crash.ts";

const LANES = 3;
let lanes: Lane[];
beforeAll(async () => {
  lanes = await Promise.all(Array.from({ length: LANES }, openLane));
});
afterAll(() => Promise.all(lanes.map((l) => l.close())));

it("killed around any call that leaves the process, the sale ends with every charge an order, every order a mail, and no unit lost", async () => {
  // CRASH=label:phase,label:phase runs these alone.
  const queue = process.env.CRASH?.split(",") ?? labels().map((label, i) => `${label}:${PHASES[i % PHASES.length]}`);
  expect(queue.length).toBeGreaterThan(process.env.CRASH ? 0 : 35);
  const failed: string[] = [];
  await Promise.all(
    lanes.map(async (lane) => {
      for (let crash = queue.shift(); crash; crash = queue.shift()) {
        const faults = await crashRun(lane, [crash]);
        if (faults.length > 0) failed.push(`${crash}: ${faults.join("; ")}`);
      }
    }),
  );
  expect(failed).toEqual([]);
}, 600_000);
