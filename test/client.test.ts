/**
 * The typed client against a real service: what it repeats, what it does not, and that the package works without this
 * repository.
 */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { z } from "@hono/zod-openapi";
import { transform } from "esbuild";
import { describe, expect, expectTypeOf, it } from "vitest";
import {
  type ConfirmRequest,
  type FukubukuroError,
  makeClient,
  type Order,
  type Reservation,
  type Sale,
} from "../src/client/index.ts";
import { signShopperToken } from "../src/http/auth.ts";
import type * as contract from "../src/http/contract.ts";
import { startProxy } from "./proxy.ts";
import { CONTACT, SECRET, until } from "./support.ts";
import { api, op, useWorld, world } from "./world.ts";

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL("..", import.meta.url));
const LINES = [{ sku: "bag", quantity: 1 }];

useWorld();

const tokenOf = (customerId: string) => signShopperToken(SECRET, customerId, 3_600_000);
/** A client that tells of each try. */
function clientOf(customerId: string, o: Partial<Parameters<typeof makeClient>[0]> = {}) {
  const tries: string[] = [];
  const fetching: typeof fetch = (input, init) => {
    tries.push(`${init?.method ?? "GET"} ${new URL(String(input)).pathname}`);
    return fetch(input, init);
  };
  return { tries, ...makeClient({ baseUrl: api.url, token: tokenOf(customerId), fetch: fetching, ...o }) };
}
const saleWith = async (stock = 10, more = {}) =>
  (await op.create({ items: [{ sku: "bag", name: "Bag", unitPrice: 1_000, stock }], ...more })).body.id;
const refusal = (p: Promise<unknown>): Promise<FukubukuroError> =>
  p.then(
    () => {
      throw new Error("it was not refused");
    },
    (e) => e as FukubukuroError,
  );

describe("the client", () => {
  it("has the shapes of the contract", () => {
    expectTypeOf<z.infer<typeof contract.saleView>>().toExtend<Sale>();
    expectTypeOf<Sale>().toExtend<z.infer<typeof contract.saleView>>();
    expectTypeOf<z.infer<typeof contract.reservationView>>().toExtend<Reservation>();
    expectTypeOf<Reservation>().toExtend<z.infer<typeof contract.reservationView>>();
    expectTypeOf<z.infer<typeof contract.orderView>>().toExtend<Order>();
    expectTypeOf<Order>().toExtend<z.infer<typeof contract.orderView>>();
    expectTypeOf<ConfirmRequest>().toExtend<z.input<typeof contract.confirmBody>>();
  });

  it("calls the fetch it was given as a function, as a browser's own insists", async () => {
    const strict = function (this: unknown, input: string | URL | Request, init?: RequestInit) {
      if (this !== undefined && this !== globalThis) throw new TypeError("Illegal invocation");
      return fetch(input, init);
    };
    const saleId = await saleWith();
    expect((await clientOf("strict", { fetch: strict, giveUpMs: 0 }).sale(saleId)).id).toBe(saleId);
  });

  it("reserves, pays, follows the payment to its order, and reads it", async () => {
    const saleId = await saleWith();
    const c = clientOf("whole");
    const sale = await c.sale(saleId);
    expect(Math.abs(c.clock.now() - Date.now())).toBeLessThan(2_000);
    expect(sale.items[0]).toMatchObject({ availability: "available", free: 10 });
    const r = await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    expect(r).toMatchObject({ status: "held", replayed: false });
    expect(await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" })).toMatchObject({ id: r.id, replayed: true });
    const seen: string[] = [];
    const paid = await c.confirmAndWait(
      r.id,
      { payment: { token: "tok_ok" }, contact: CONTACT },
      { onChange: (x) => seen.push(x.status) },
    );
    expect(paid.status).toBe("confirmed");
    expect(seen[0]).toBe("paying");
    expect(await c.order(paid.orderId as string)).toMatchObject({
      id: paid.orderId,
      amount: 1_000,
      status: "confirmed",
    });
    expect(await c.reservations(saleId)).toMatchObject([{ id: r.id, status: "confirmed" }]);
  });

  it("repeats with the same key when the answer is lost, and one bag is held", async () => {
    const saleId = await saleWith();
    const link = await startProxy(Number(new URL(api.url).port));
    const c = clientOf("lossy", { baseUrl: `http://127.0.0.1:${link.port}` });
    link.loseReplies(true);
    const reserving = c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    await until("three tries", () => c.tries.length >= 3);
    link.loseReplies(false);
    expect(await reserving).toMatchObject({ status: "held", replayed: true });
    expect((await op.sale(saleId)).items[0]).toMatchObject({ free: 9, held: 1 });
    await link.close();
  });

  it("does not repeat a refusal, and hands over its code and body", async () => {
    const saleId = await saleWith(0);
    const c = clientOf("refused");
    const e = await refusal(c.reserve(saleId, { lines: LINES, idempotencyKey: "k" }));
    expect(e).toMatchObject({
      status: 409,
      code: "SOLD_OUT",
      problem: { lines: [{ sku: "bag", requested: 1, free: 0 }] },
    });
    expect(c.tries).toHaveLength(1);
  });

  it("waits as long as Retry-After says", async () => {
    const strict = await world.start({ CUSTOMER_RATE_PER_S: "1", ROLE: "api" });
    const saleId = await saleWith();
    const c = clientOf("fast", { baseUrl: strict.url });
    const five = await Promise.all(Array.from({ length: 5 }, () => c.reservations(saleId)));
    expect(five).toEqual([[], [], [], [], []]);
    expect(c.tries.length).toBeGreaterThan(5);
    await strict.close();
  });

  it("gives up with NO_ANSWER, which means not known", async () => {
    const gone = await world.start({ ROLE: "api" });
    await gone.close();
    const e = await refusal(clientOf("nobody", { baseUrl: gone.url, giveUpMs: 600 }).sale("any"));
    expect(e).toMatchObject({ status: 0, code: "NO_ANSWER" });
  });

  it("tells a decline by its code, keeps the hold, and stops at a page the shopper has to see", async () => {
    const saleId = await saleWith();
    const c = clientOf("declined");
    const { id } = await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    const e = await refusal(c.confirmAndWait(id, { payment: { token: "tok_declined" }, contact: CONTACT }));
    expect(e).toMatchObject({
      code: "PAYMENT_DECLINED",
      problem: { declineCode: "card_declined", reservation: { id, status: "held" } },
    });
    const page = await c.confirmAndWait(id, { payment: { token: "tok_3ds" }, contact: CONTACT });
    expect(page.payment).toMatchObject({ status: "action_required", actionUrl: expect.stringContaining("/approve/") });
  });

  it("follows a reservation over cut connections until it has ended", async () => {
    const saleId = await saleWith(10, { holdMs: 3_000 });
    const link = await startProxy(Number(new URL(api.url).port));
    const c = clientOf("followed", { baseUrl: `http://127.0.0.1:${link.port}` });
    const { id } = await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    const seen: string[] = [];
    for await (const r of c.events(id)) {
      if (seen.push(r.status) === 1) link.cut();
    }
    expect(seen.at(-1)).toBe("expired");
    expect(seen.length).toBeGreaterThan(2);
    await link.close();
  });

  it("connects again when a stream falls silent, which no answer tells", async () => {
    const saleId = await saleWith();
    const link = await startProxy(Number(new URL(api.url).port));
    // Shorter than the service's own sign of life, so that silence is met at once.
    const c = clientOf("silent", { baseUrl: `http://127.0.0.1:${link.port}`, timeoutMs: 300 });
    const { id } = await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    const seen: string[] = [];
    for await (const r of c.events(id)) {
      if (seen.push(r.status) === 1) {
        link.blackHole(true);
        await clientOf("silent").release(id);
        until("another try", () => c.tries.filter((t) => t.endsWith("/events")).length > 1).then(
          () => link.blackHole(false),
          () => {},
        );
      }
    }
    expect(seen.at(-1)).toBe("released");
    await link.close();
  });

  it("goes on watching over trouble, and tells of it", async () => {
    const saleId = await saleWith();
    const link = await startProxy(Number(new URL(api.url).port));
    const c = clientOf("watcher", { baseUrl: `http://127.0.0.1:${link.port}` });
    const codes: string[] = [];
    let polls = 0;
    for await (const s of c.watch(saleId, { everyMs: 20, onTrouble: (e) => codes.push(e.code) })) {
      expect(s.id).toBe(saleId);
      if (++polls === 1) link.loseReplies(true);
      if (codes.length > 1) break;
      if (polls === 1)
        until("trouble", () => codes.length > 1).then(
          () => link.loseReplies(false),
          () => {},
        );
    }
    expect(codes[0]).toBe("NO_ANSWER");
    expect(
      (
        await refusal(
          (async () => {
            for await (const _ of c.watch("no-such-sale"));
          })(),
        )
      ).code,
    ).toBe("NOT_FOUND");
    await link.close();
  });

  it("stops following and watching when it is told to", async () => {
    const saleId = await saleWith();
    const c = clientOf("stopped");
    const { id } = await c.reserve(saleId, { lines: LINES, idempotencyKey: "k" });
    const stop = new AbortController();
    for await (const r of c.events(id, { signal: stop.signal })) {
      expect(r.id).toBe(id);
      stop.abort();
    }
    const enough = new AbortController();
    for await (const s of c.watch(saleId, { everyMs: 10, signal: enough.signal })) {
      expect(s.id).toBe(saleId);
      enough.abort();
    }
    expect(await c.release(id)).toMatchObject({ status: "released" });
  });

  /** Whether somebody else's program passes the strictest checks. */
  async function typechecks(folder: string, file: string): Promise<void> {
    const compilerOptions = {
      strict: true,
      noEmit: true,
      module: "nodenext",
      lib: ["es2023", "dom", "dom.asynciterable"],
      types: [],
      skipLibCheck: false,
    };
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: [file] }));
    await run(join(ROOT, "node_modules", ".bin", "tsc"), ["-p", folder]);
  }

  it("is in the service's package as plain JavaScript with its types, and needs nothing else", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-pack-"));
    await run("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", folder], { cwd: ROOT });
    const home = join(folder, "node_modules", "fukubukuro");
    await mkdir(home, { recursive: true });
    await run("sh", ["-c", `tar -xzf ${folder}/fukubukuro-*.tgz -C ${home} --strip-components=1`]);
    const saleId = await saleWith();
    const program = `
      import { makeClient } from "fukubukuro/client";
      const c = makeClient({ baseUrl: process.env.URL, token: process.env.TOKEN });
      const { id } = await c.reserve(process.env.SALE, { lines: [{ sku: "bag", quantity: 1 }], idempotencyKey: "k" });
      const paid = await c.confirmAndWait(id, { payment: { gateway: "cod" }, contact: { email: "a@example.jp", name: "a" } });
      console.log((await c.order(paid.orderId)).status);`;
    const env = { ...process.env, URL: api.url, TOKEN: tokenOf("packed"), SALE: saleId };
    const { stdout } = await run(process.execPath, ["--input-type=module", "-e", program], { cwd: folder, env });
    expect(stdout.trim()).toBe("confirmed");
    await writeFile(
      join(folder, "uses.ts"),
      'import { makeClient, type Sale } from "fukubukuro/client";\nexport const sale: Promise<Sale> = makeClient().sale("a");\n',
    );
    await typechecks(folder, "uses.ts");
    await rm(folder, { recursive: true, force: true });
  });

  it("is a package of its own, of less than 40 kB and without dependencies, whose README's example compiles and buys a bag", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fukubukuro-client-"));
    await run("npm", ["pack", "--silent", "--pack-destination", folder], { cwd: join(ROOT, "src/client") });
    const packed = (await readdir(folder)).find((f) => f.endsWith(".tgz")) as string;
    await writeFile(join(folder, "package.json"), '{ "private": true, "type": "module" }');
    await run("npm", ["install", "--offline", "--no-audit", `./${packed}`], { cwd: folder });
    const installed = await readdir(join(folder, "node_modules"));
    expect(installed.filter((name) => !name.startsWith("."))).toEqual(["fukubukuro-client"]);
    const { stdout: size } = await run("du", [
      "-sb",
      "--apparent-size",
      join(folder, "node_modules/fukubukuro-client"),
    ]);
    expect(Number.parseInt(size, 10)).toBeLessThan(40_000);

    const readme = await readFile(join(ROOT, "src/client/README.md"), "utf8");
    const example = /<!-- tested: buy\.ts -->\n```ts\n([\s\S]*?)```/.exec(readme)?.[1] as string;
    await writeFile(join(folder, "buy.ts"), example.replace(/console\.error\([^)]*\)/, "throw error"));
    await typechecks(folder, "buy.ts");
    const { code } = await transform(example, { loader: "ts", format: "esm" });
    await writeFile(join(folder, "buy.js"), code);
    const program = `
      import { buy } from "./buy.js";
      const { URL, TOKEN, SALE } = process.env;
      const [a, b] = [await buy(URL, TOKEN, SALE, "press"), await buy(URL, TOKEN, SALE, "press")];
      console.log(a.status, a.id === b.id);`;
    const env = { ...process.env, URL: api.url, TOKEN: tokenOf("own"), SALE: await saleWith() };
    const { stdout } = await run(process.execPath, ["--input-type=module", "-e", program], { cwd: folder, env });
    expect(stdout.trim()).toBe("confirmed true");
    await rm(folder, { recursive: true, force: true });
  });
});
