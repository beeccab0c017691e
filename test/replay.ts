/** What a test drew at random can be drawn again: the command is printed before the run, and stands in its failure. */
import fc from "fast-check";
import { expect } from "vitest";
import { anySeed } from "../src/local/random.ts";

/** The command that runs the test in hand once more with these settings. */
export function replayCommand(settings: Record<string, string | number | undefined>, config = ""): string {
  const set = Object.entries(settings).flatMap(([k, v]) => (v === undefined ? [] : [`${k}='${v}'`]));
  const file = (expect.getState().testPath ?? "").replace(`${process.cwd()}/`, "");
  return [...set, "npx vitest run", ...(config && ["--config", config]), file].join(" ");
}

/** SEED, or one that nobody chose. */
export const seedOfRun = (): number => Number(process.env.SEED ?? anySeed());

/** Where FC_REPLAY leads a list of commands (fast-check prints it beside the path). */
export const commandsReplay = (): { replayPath?: string } =>
  process.env.FC_REPLAY ? { replayPath: process.env.FC_REPLAY } : {};

/** fc.assert with a seed that is printed: SEED repeats the run, with FC_PATH its smallest counterexample alone. */
export async function assertProperty<T>(
  property: fc.IProperty<T> | fc.IAsyncProperty<T>,
  o: fc.Parameters<T> = {},
): Promise<void> {
  const seed = seedOfRun();
  const path = process.env.FC_PATH;
  console.log(`replay: ${replayCommand({ SEED: seed })}`);
  const details = await fc.check(property, { ...o, seed, ...(path && { path, endOnFailure: true }) });
  if (!details.failed) return;
  const replay = /replayPath="([^"]*)"/.exec(fc.stringify(details.counterexample))?.[1];
  const command = replayCommand({ SEED: seed, FC_PATH: details.counterexamplePath ?? undefined, FC_REPLAY: replay });
  throw new Error(`${await fc.asyncDefaultReportMessage(details)}\nreplay: ${command}`, {
    cause: details.errorInstance,
  });
}
