/**
 * Nothing leaks: every kind of request that exists, thousands of times each, against a service in a process of its own;
 * what its heap keeps after a collection is level. Which kinds and how often: soak-kinds.ts.
 */
import { expect, it } from "vitest";
import { startProcess } from "./crash.ts";
import { type Inspector, inspect, type Kept, keptLine, withInspector } from "./heap.ts";
import { askMany } from "./many-requests.ts";
import { type Kind, type Stage, setScene } from "./soak-kinds.ts";
import { makeWorld } from "./support.ts";

/**
 * The first two fill what may be filled: caches, compiled code, connections. The others are compared, three with three.
 */
const ROUNDS = 8;
const WARM_UP = 2;
const LEVEL = 1.05;

async function askKind(url: string, kind: Kind, round: number): Promise<void> {
  const n = Math.ceil(kind.times / ROUNDS);
  const answers = await askMany(url, n, (i) => kind.ask(round * n + i));
  const wrong = Object.keys(answers).filter((status) => !kind.answers.includes(Number(status)));
  if (wrong.length > 0) throw new Error(`${kind.name}: ${JSON.stringify(answers)}`);
}

async function soak(url: string, stage: Stage, inspector: Inspector): Promise<Kept[]> {
  const kept: Kept[] = [];
  const took = new Map<string, number>();
  const timed = async (name: string, f: () => Promise<unknown>) => {
    const began = performance.now();
    await f();
    took.set(name, (took.get(name) ?? 0) + performance.now() - began);
  };
  for (let round = 0; round < ROUNDS; round++) {
    for (const kind of stage.kinds) await timed(kind.name, () => askKind(url, kind, round));
    await timed("several in a row", () => stage.play(url, round, ROUNDS));
    kept.push(await inspector.kept());
  }
  const longest = [...took].sort(([, a], [, b]) => b - a).slice(0, 60);
  console.log(longest.map(([name, ms]) => `${name} ${(ms / 1000).toFixed(1)} s`).join(", "));
  return kept;
}

/** Of three readings the one in the middle: a reading may fall into the middle of an audit. */
const middle = (kept: Kept[]) => kept.map((k) => k.heap + k.external).sort((a, b) => a - b)[1] as number;

it("every kind of request, thousands of times each, leaves a heap of 256 MB level", async () => {
  const gateway = { SANDBOX_LATENCY_MS: "1", SANDBOX_JITTER_MS: "1", SANDBOX_IN_FLIGHT_MAX: "8" };
  const world = await makeWorld({ gateway });
  try {
    const helper = await world.start({ ROLE: "api", GATEWAY_IN_FLIGHT_MAX: "8" });
    const env = {
      ...withInspector("--max-old-space-size=256"),
      LOG_LEVEL: "info",
      GATEWAY_IN_FLIGHT_MAX: "8",
      MAIL_RATE_PER_S: "1000",
    };
    const service = await startProcess(world, env);
    try {
      const stage = await setScene(helper);
      const inspector = await inspect(service.output());
      const kept = await soak(service.url, stage, inspector);
      console.log(kept.map((k, round) => keptLine(`round ${round + 1}:`, k)).join("\n"));
      inspector.close();
      const measured = kept.slice(WARM_UP);
      const [early, late] = [measured.slice(0, measured.length / 2), measured.slice(measured.length / 2)];
      expect(middle(late) / middle(early), "late over early").toBeLessThan(LEVEL);
    } finally {
      service.kill();
      await service.ended;
    }
  } finally {
    await world.close();
  }
}, 400_000);
