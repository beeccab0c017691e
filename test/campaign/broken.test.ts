/**
 * Broken builds: each deliberate defect, put into a copy of the source, must be caught by the suite. A defect whose text is not in the source any
 * more fails too, so that the table stays true.
 */
import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const WIDTH = 2;

interface Defect {
  name: string;
  edits: Array<{ file: string; from: string; to: string }>;
  /** The test file that catches it, and a part of the names of its tests. */
  by: string;
  named?: string;
}
const edit = (file: string, from: string, to: string) => ({ file, from, to });
const one = (name: string, file: string, from: string, to: string, by: string, named?: string): Defect => ({
  name,
  edits: [edit(file, from, to)],
  by,
  ...(named && { named }),
});

const DEFECTS: Defect[] = [
  {
    name: "a connection that was lost is used again",
    by: "db",
    edits: [
      edit("src/db.ts", "if (!all.delete(c)) return;", "if (all.has(c)) return;"),
      edit("src/db.ts", "if (c.lost || !all.has(c)) return;", ""),
    ],
  },
  one(
    "rule I: a payment's row is written whatever became of its pin",
    "src/payments.ts",
    "::jsonb ->> p.reference)::int, stands.epoch) = stands.epoch",
    "::jsonb ->> p.reference)::int, stands.epoch) is not null",
    "rules",
    "rule I, for the payment's row",
  ),
  one(
    "rule A: not found ends a payment",
    "src/recover/reconcile.ts",
    `if (said?.outcome !== "not_found") return settle(mine, said);`,
    `if (said?.outcome === "not_found") return settle(mine, { outcome: "cancelled" });\n  if (said) return settle(mine, said);`,
    "sale",
    "sent again under the same reference",
  ),
  one(
    "rule B: one's own outcome is followed",
    "src/stages/charge.ts",
    "followPayments(ctx, [stored])]);",
    `followPayments(ctx, [answer.outcome === "declined" ? { ...stored, state: "declined" } : stored])]);`,
    "rules",
    "rule B",
  ),
  one(
    "rule C: confirm without looking at the reference",
    "lua/confirm.lua",
    "h.ref ~= ref or ",
    "",
    "scripts",
    "confirm",
  ),
  one(
    "rule C: decline without looking at the reference",
    "lua/decline.lua",
    "h.ref ~= ref or ",
    "",
    "scripts",
    "decline",
  ),
  one(
    "rule D: paying holds are not compared with their payments",
    "src/recover/reconcile.ts",
    "for (let from = 0; from < old.length; from += BATCH_MAX)",
    "for (let from = 0; from < 0; from += BATCH_MAX)",
    "recover",
    "between the pin and the payment row",
  ),
  one(
    "rule D: no tombstone before a hold is given back",
    "src/payments.ts",
    `await insertPayments(db, [{ ...p, ...nothing, state: "cancelled", declineCode: NOT_WRITTEN, endedAt: new Date() }]);\n  return (await findPayment(db, p.reference)) as Payment;`,
    `return { ...p, ...nothing, state: "cancelled", declineCode: "not_written" } as never as Payment;`,
    "recover",
    "between the pin and the payment row",
  ),
  one(
    "rule E: the permit is not looked at before the claim",
    "src/stages/charge.ts",
    "if (!permit.covers()) return gate.settle(permit, null, null);\n  const claim",
    "const claim",
    "rules",
    "rule E",
  ),
  one(
    "rule E: the permit is not looked at before the send",
    "src/stages/charge.ts",
    "      if (!permit.covers()) return gate.settle(permit, null, null);\n",
    "",
    "rules",
    "rule E",
  ),
  one(
    "permits that outlive a clock that was set back",
    "lua/permit_take.lua",
    "redis.call('ZADD', KEYS[1], now + longest, late)",
    "local _ = late",
    "scripts",
    "set back nothing",
  ),
  one(
    "rule F: a new Redis opens the gate at once",
    "lua/permit_take.lua",
    "ARGV[6] == '1' and now or now + lease",
    "now",
    "scripts",
  ),
  one(
    "rule G: the Redis instance is not looked at, nor the sequence",
    "src/sales.ts",
    "return sale.epoch > 0 && here.runId === sale.runId && here.replicationId === sale.replicationId;",
    "return sale.epoch > 0;",
    "recover",
  ),
  one(
    "rule G: the sequence is not looked at",
    "lua/prelude.lua",
    "or tonumber(s[2]) < tonumber(ARGV[2])",
    "",
    "recover",
    "stale replica",
  ),
  one("rule G: the epoch is not looked at", "lua/prelude.lua", "s[1] ~= ARGV[1] or ", "", "scripts"),
  one(
    "rule H: several live payments for a reservation",
    "drizzle/0000_first.sql",
    'CREATE UNIQUE INDEX "payments_one_live"',
    'CREATE INDEX "payments_one_live"',
    "rules",
    "rule H",
  ),
  one(
    "rule I: a claim under an old epoch",
    "src/payments.ts",
    "return row?.epoch === epoch;",
    "return row !== undefined;",
    "recover",
    "rule I",
  ),
  one("rule I: install over a newer epoch", "lua/install.lua", "'epoch', 'fenced'", "'fenced'", "scripts"),
  one(
    "rule I: install over a fence of a later rebuild",
    "lua/install.lua",
    "'epoch', 'fenced'",
    "'epoch'",
    "recover",
    "overtakes",
  ),
  {
    name: "rule I: another epoch is raised than was fenced",
    by: "recover",
    named: "stalled",
    edits: [
      edit("src/recover/rebuild.ts", "row?.epoch !== from", "!row"),
      edit("src/recover/rebuild.ts", "const epoch = from + 1", "const epoch = row.epoch + 1"),
    ],
  },
  one(
    "units that are shown as out are told as sold",
    "lua/prelude.lua",
    "return live + hidden, ",
    "return live, ",
    "scripts",
    "is a lease",
  ),
  one(
    "rule J: a claimed hold is counted twice by rebuild",
    "src/recover/rebuild.ts",
    "if (p.claimed) claimedKeys.add(p.reservationKey);",
    "",
    "recover",
    "after the captured outcome",
  ),
  one(
    "rule K: rebuild forgets the moves it has counted",
    "src/recover/rebuild.ts",
    "    customers,\n    moves,\n",
    "    customers,\n    moves: [],\n",
    "rules",
    "rule K",
  ),
  one(
    "rule L: granted is lowered though Redis was replaced",
    "src/stages/topup.ts",
    `if (row?.state === "pending") {`,
    `if (row?.state === "pending" && move.delta > 0) {`,
    "sale",
    "tops up",
  ),
  one(
    "rule M: units are free again before the gateway has said refunded",
    "src/admin.ts",
    `        return changed.length > 0;\n`,
    `        if (restock && changed.length > 0) await tx.execute(sql\`update items set claimed = claimed - 1 where sale_id = \${order.saleId}\`);\n        return changed.length > 0;\n`,
    "sale",
    "refunds an order",
  ),
  one(
    "acknowledged before the commit",
    "src/stages/persist.ts",
    `return raw.length === 0 ? 0 : around("persist.work", () => work(sale, raw));`,
    `if (raw.length > 0) await forget(\n      journal,\n      raw.map(([id]) => id),\n    );\n    return raw.length === 0 ? 0 : around("persist.work", () => work(sale, raw));`,
    "crash",
    "killed around",
  ),
  one(
    "released twice",
    "lua/release.lua",
    "if h.state == 'h' then give_back",
    "if h.state == 'h' or h.state == 'r' then give_back",
    "sale",
    "given back is free at once",
  ),
  one(
    "a paying hold is released",
    "lua/release.lua",
    "if h.state == 'h' then give_back",
    "if h.state == 'h' or h.state == 'p' then give_back",
    "scripts",
    "release",
  ),
  {
    name: "a paying hold stays on the expiry clock and is swept",
    edits: [
      edit("lua/prelude.lua", "else due_not[#due_not + 1] = key end", "end"),
      edit(
        "lua/prelude.lua",
        "if h.state == 'h' and h.deadline <= book.clock then\n      give_back(book, key, h, 'x')\n      n",
        "if h.deadline <= book.clock then\n      give_back(book, key, h, 'x')\n      n",
      ),
    ],
    by: "scripts",
    named: "expire",
  },
  one(
    "a timeout is taken for a decline",
    "src/gateways/sandbox.ts",
    `{ outcome: "unknown", why: code };`,
    `{ outcome: "declined", declineCode: "timeout", chargeId: null };`,
    "sale",
    "never answered",
  ),
  one(
    "the permit is given back after a timeout",
    "src/gate.ts",
    `if (answer?.outcome === "unknown") return;`,
    "",
    "recover",
    "keeps the permit",
  ),
  one(
    "a new reference for the same payment",
    "src/recover/reconcile.ts",
    "gateway.charge(chargeRequest(again))",
    `gateway.charge({ ...chargeRequest(again), reference: \`\${again.reference.slice(0, 25)}X\` })`,
    "sale",
    "sent again under the same reference",
  ),
  one(
    "a claim without its guard",
    "src/payments.ts",
    "<= ${".concat("items.granted}`"),
    ">= 0`",
    "recover",
    "granted more than exists",
  ),
  one(
    "the fence is not looked at",
    "src/payments.ts",
    "      eq(payments.fence, asked.fence),\n      inArray",
    "      inArray",
    "recover",
    "fencing",
  ),
  one(
    "an order without a captured charge",
    "src/stages/persist.ts",
    "::json)) and state = 'captured'",
    "::json))",
    "recover",
    "P8",
  ),
  one(
    "orders are inserted without looking for them",
    "src/stages/persist.ts",
    "order by captured_at, reference\n      on conflict do nothing returning",
    "order by captured_at, reference\n      returning",
    "crash",
    "killed around",
  ),
  one(
    "a replay is a new reservation",
    "lua/reserve.lua",
    "  if h then\n",
    "  if h and h.state ~= 'h' then\n",
    "scripts",
    "REPLAYED",
  ),
  one(
    "a board is no lease",
    "lua/prelude.lua",
    "return book.told_out[sku] and 0 or have",
    "return have",
    "scripts",
    "is a lease",
  ),
  one(
    "a board refuses those who hold something",
    "src/board.ts",
    " || w.customers.has(customerId)",
    "",
    "rush",
    "refusing from memory",
  ),
  one(
    "a rebuild reads every table at a moment of its own",
    "src/recover/rebuild.ts",
    "JSON.stringify(after) === JSON.stringify(rows.itemRows)",
    "after",
    "rules",
    "one moment",
  ),
  one("the mirror is written in any order", "src/stages/persist.ts", "    order by r.key\n", "", "rules", "crosswise"),
  one(
    "mails give way for ever",
    "src/workers.ts",
    "MAIL_GIVES_WAY_MS = 2_000",
    "MAIL_GIVES_WAY_MS = 200_000",
    "sale",
    "stays busy",
  ),
  one(
    "a sale of long ago is visited all the time",
    "src/sales.ts",
    "Date.now() > s.closesAtMs + s.holdMs + LOOKED_AFTER_MS",
    "s.holdMs < 0",
    "sale",
    "long over",
  ),
  one(
    "an old capture without an order is never found",
    "src/recover/reconcile.ts",
    "walk ? undefined : gt(payments.capturedAt, ago(RECENT_MS))",
    "gt(payments.capturedAt, ago(RECENT_MS))",
    "rules",
    "capture of long ago",
  ),
  one(
    "an honoured capture is not followed",
    "src/recover/reconcile.ts",
    "    await followHonoured(ctx);\n",
    "",
    "rules",
    "late money",
  ),
  one(
    "a late capture is left lying",
    "src/recover/reconcile.ts",
    "if (p && endedUnpaid(p)) {",
    "if (p && endedUnpaid(p) && stray < 0) {",
    "rules",
    "late money",
  ),
];

function vitest(folder: string, file: string, named: string | undefined): Promise<{ code: number; out: string }> {
  return new Promise((resolve) => {
    const args = [
      join(ROOT, "node_modules/vitest/vitest.mjs"),
      "run",
      `test/${file}.test.ts`,
      ...(named ? ["-t", named] : []),
    ];
    // CRASH: a few points are enough to catch what the whole matrix would.
    const env = {
      ...process.env,
      CRASH: "persist.write:before,persist.write:answered,persist.work:sent",
      FORCE_COLOR: "0",
    };
    execFile(
      process.execPath,
      args,
      { cwd: folder, env, timeout: 240_000, maxBuffer: 50_000_000 },
      (error, stdout, stderr) => resolve({ code: error ? 1 : 0, out: stdout + stderr }),
    );
  });
}

async function verdict(d: Defect): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-broken-"));
  try {
    for (const part of [
      "src",
      "lua",
      "drizzle",
      "test",
      "package.json",
      "tsconfig.json",
      "tsconfig.client.json",
      "vitest.config.ts",
    ])
      await cp(join(ROOT, part), join(folder, part), { recursive: true });
    await symlink(join(ROOT, "node_modules"), join(folder, "node_modules"));
    for (const e of d.edits) {
      const path = join(folder, e.file);
      const text = await readFile(path, "utf8");
      if (!text.includes(e.from)) return "NOT IN THE SOURCE";
      await writeFile(
        path,
        text.replace(e.from, () => e.to),
      );
    }
    const { code, out } = await vitest(folder, d.by, d.named);
    if (!/\bTests\s/.test(out)) return `NO TEST RAN: ${out.slice(-400)}`;
    return code === 0 ? "SURVIVED" : "caught";
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

it("every deliberate defect is caught by the suite", async () => {
  const only = process.env.DEFECT;
  const queue = DEFECTS.filter((d) => !only || d.name.includes(only));
  expect(queue, `no defect is named like ${only}`).not.toEqual([]);
  const verdicts: Array<[string, string]> = [];
  await Promise.all(
    Array.from({ length: WIDTH }, async () => {
      for (let d = queue.shift(); d; d = queue.shift()) {
        const v = await verdict(d);
        verdicts.push([d.name, v]);
        console.log(`${v.padEnd(10)} ${d.name} (${d.by}${d.named ? `: ${d.named}` : ""})`);
      }
    }),
  );
  expect(verdicts.filter(([, v]) => v !== "caught")).toEqual([]);
}, 3_000_000);
