import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { randomOf } from "../src/local/random.ts";

const some = (random: () => number, n = 20) => Array.from({ length: n }, random);

describe("a seed", () => {
  it("makes the same stream for the same name, and another one for another name or seed", () => {
    expect(some(randomOf(7, "shopper-1"))).toEqual(some(randomOf(7, "shopper-1")));
    const streams = [
      randomOf(7, "shopper-1"),
      randomOf(7, "shopper-2"),
      randomOf(8, "shopper-1"),
      randomOf(7, "nemesis"),
    ];
    expect(new Set(streams.flatMap((s) => some(s))).size).toBe(80);
  });

  it("gives each party what it draws, whoever else draws in between", () => {
    const alone = some(randomOf(7, "nemesis"));
    const [nemesis, shopper] = [randomOf(7, "nemesis"), randomOf(7, "shopper-17")];
    const between = () => {
      some(shopper, 3);
      return nemesis();
    };
    expect(some(between)).toEqual(alone);
  });

  it("is spread evenly from 0 to below 1", () => {
    const drawn = some(randomOf(7, "spread"), 10_000);
    expect(drawn.every((x) => x >= 0 && x < 1)).toBe(true);
    for (let tenth = 0; tenth < 10; tenth++) {
      const share = drawn.filter((x) => Math.floor(x * 10) === tenth).length / drawn.length;
      expect(share).toBeGreaterThan(0.08);
      expect(share).toBeLessThan(0.12);
    }
  });
});

it("whoever is simulated draws from a stream of a seed, never from chance itself", () => {
  const folders = ["test", "bench", "src/local", "src/commands"];
  const files = folders.flatMap((folder) =>
    (readdirSync(folder, { recursive: true }) as string[]).map((f) => join(folder, f)).filter((f) => f.endsWith(".ts")),
  );
  const chance = ["Math", "random()"].join(".");
  const drawing = files.filter((f) => readFileSync(f, "utf8").includes(chance));
  // The one that makes a seed.
  expect(drawing).toEqual(["src/local/random.ts"]);
});
