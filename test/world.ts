/**
 * The world of a test file: servers of its own, one service over them, and its operator, for all the tests of the file.
 */
import { afterAll, beforeAll } from "vitest";
import { makeWorld, operator, type Running, type World } from "./support.ts";

export let world: World;
export let api: Running;
export let op: ReturnType<typeof operator>;

/** To be called at the top of the file; `env` are settings of the service. */
export function useWorld(env: Record<string, string> = {}): void {
  beforeAll(async () => {
    world = await makeWorld();
    api = await world.start(env);
    op = operator(api.url);
  });
  afterAll(() => world?.close());
}
