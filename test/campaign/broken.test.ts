/**
 * Broken builds: each deliberate defect, put into a copy of the source, must be caught by the suite. A defect whose
 * text is not in the source any more fails too, so that the table stays true.
 */
import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { DEFECTS, type Defect } from "./defects.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const WIDTH = 2;

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
      "package-lock.json",
      "build.mjs",
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
