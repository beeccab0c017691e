/**
 * The answer to COMMIT lost: it was committed, and who asked does not know. At every kind of transaction that the
 * service makes.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import { startCommitProxy } from "./commit-proxy.ts";
import { type Lane, labels, openLane, playThrough } from "./crash.ts";

/** What each label that stands for a transaction writes; a label that is in neither list has to be put into one. */
const TRANSACTIONS: Record<string, RegExp> = {
  "pay.row": /insert into payments select/,
  "charge.claim": /^update "payments" set "state".*; update "items" set "claimed"/,
  "charge.outcome":
    /^update "payments" set "state" = \$1, "token" = \$2, .*"charge_id"|^update "payments" set .*"captured_at" = now\(\)/,
  "cod.claim": /update payments set state = 'captured'.*; update "items"/,
  "persist.write": /insert into reservations/,
  "persist.work": /insert into orders/,
  "reconcile.takeOver": /^update "payments" set "fence"/,
  "reconcile.outcome":
    /^update "payments" set "state" = \$1, "check_at"|^update "payments" set .*"claimed" = .*; update "items" set "claimed"/,
  "reconcile.orders": /insert into orders/,
  "reconcile.tombstone": /insert into payments select/,
  "refund.begin": /^update "orders" set "status".*; update "payments" set "state"/,
  "refund.done": /^update "payments" set "state".*; update "orders" set "status".*insert into "stock_moves"/,
  "late.claim":
    /^update "payments" set [^;]*"attention" = \$\d+[^;]*; update "items" set "claimed" = "items"."claimed" \+/,
  "late.refund": /^update "payments" set .*"late"/,
  "top-up.row": /^insert into "stock_moves".*; update "items" set "granted"/,
  "top-up.done": /^update "stock_moves" set "state"/,
  "sale.rows": /^insert into "sales".*; insert into "items"/,
  "patch.row": /^update "sales" set/,
  "rebuild.raise": /^update "epochs" set "epoch"/,
  "rebuild.drain": /insert into reservations/,
  "outbox.sent": /^update "outbox" set "state"/,
};
const ALSO: Record<string, RegExp> = {
  "a place taken in the outbox": /^update outbox set next_at/,
  "the operators' trail": /^insert into "admin_log"/,
  "a beat": /insert into beats/,
};
/** These ask Redis, a gateway or a mail server. */
const ELSEWHERE =
  /\.(redis|pin|line|forget|fence|install|take|give)$|^(gateway|mail|gate)\.|^cod\.line$|^late\.pin$|^reconcile\.line$/;

const LANES = 3;
let lanes: Lane[];
beforeAll(async () => {
  lanes = await Promise.all(Array.from({ length: LANES }, openLane));
});
afterAll(() => Promise.all(lanes.map((l) => l.close())));

it("every label of a transaction has its kind", () => {
  for (const label of labels()) expect([label, label in TRANSACTIONS || ELSEWHERE.test(label)]).toEqual([label, true]);
});

it("the answer lost at the first or the second transaction of every kind: the books balance, nobody is told wrongly, everything comes to its end", async () => {
  const lost = new Set<string>();
  const failed: string[] = [];
  const runs = [
    { name: "the first of each", flush: false, decide: (_: string, nth: number) => nth === 1 },
    { name: "the first of each, Redis emptied", flush: true, decide: (_: string, nth: number) => nth === 1 },
    { name: "the second of each", flush: false, decide: (_: string, nth: number) => nth === 2 },
  ];
  await Promise.all(
    lanes.map(async (lane) => {
      for (let run = runs.shift(); run; run = runs.shift()) {
        const { name, flush, decide } = run;
        const proxy = await startCommitProxy(Number(new URL(lane.world.databaseUrl).port));
        try {
          const url = new URL(lane.world.databaseUrl);
          url.port = String(proxy.port);
          const begin = () => proxy.decide(decide);
          const faults = await playThrough(
            lane,
            { DATABASE_URL: url.href, RETRY_GRACE_MS: "5000" },
            { flush, begin },
          ).catch((e) => [String(e)]);
          for (const kind of proxy.lost.keys()) lost.add(kind);
          if (faults.length > 0) failed.push(`${name}: ${faults.join("; ")}`);
        } finally {
          await proxy.close();
        }
      }
    }),
  );
  expect(failed).toEqual([]);
  const missing = Object.entries({ ...TRANSACTIONS, ...ALSO }).filter(
    ([, kind]) => ![...lost].some((k) => kind.test(k)),
  );
  expect(missing, `met: \n${[...lost].sort().join("\n")}`).toEqual([]);
}, 300_000);
