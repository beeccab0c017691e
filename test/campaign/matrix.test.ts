/** The whole crash matrix: every label at every phase, and pairs: a crash in the recovery of a crash. */
import { afterAll, beforeAll, expect, it } from "vitest";
import { crashRun, type Lane, labels, openLane, points } from "../crash.ts";

const LANES = 3;
/** Of the second crash: what runs when things are mended. Each once, after one of the first in turn. */
const RECOVERY =
  /^(reconcile\.(takeOver|outcome|line|tombstone)|rebuild|late|persist|confirm|decline|gateway\.(lookUp|chargeAgain|cancel)|top-up\.redis|top-up\.done|refund\.done|outbox)/;
const FIRST = [
  "pay.row:answered",
  "charge.claim:answered",
  "gateway.charge:sent",
  "charge.outcome:answered",
  "cod.claim:answered",
  "refund.begin:answered",
];

let lanes: Lane[];
beforeAll(async () => {
  lanes = await Promise.all(Array.from({ length: LANES }, openLane));
});
afterAll(() => Promise.all(lanes.map((l) => l.close())));

async function runAll(queue: string[][]): Promise<string[]> {
  const failed: string[] = [];
  const total = queue.length;
  await Promise.all(
    lanes.map(async (lane) => {
      for (let crashes = queue.shift(); crashes; crashes = queue.shift()) {
        const faults = await crashRun(lane, crashes);
        if (faults.length > 0) failed.push(`${crashes.join(" then ")}: ${faults.join("; ")}`);
        console.log(
          `${total - queue.length}/${total} ${crashes.join(" then ")} ${faults.length === 0 ? "ok" : `FAILED: ${faults.join("; ")}`}`,
        );
      }
    }),
  );
  return failed;
}

it("every label at every phase", async () => {
  const all = points().map((p) => [p]);
  const failed = await runAll(all);
  console.log(`${labels().length} labels, ${points().length} points`);
  expect(failed).toEqual([]);
}, 3_600_000);

it("pairs: killed again while the first crash is being mended", async () => {
  const second = labels().filter((l) => RECOVERY.test(l));
  // PAIRS=pay.row:answered>confirm.redis:sent,... runs these alone.
  const pairs =
    process.env.PAIRS?.split(",").map((p) => p.split(">")) ??
    // What was left half done before is mended at once, so the first crash has to come early.
    second.map((label, i) => [
      /^(late|reconcile)\./.test(label) ? (FIRST[0] as string) : (FIRST[i % FIRST.length] as string),
      `${label}:${["sent", "answered"][Math.floor(i / FIRST.length) % 2]}`,
    ]);
  const failed = await runAll([...pairs]);
  console.log(`${pairs.length} pairs`);
  expect(failed).toEqual([]);
}, 3_600_000);
