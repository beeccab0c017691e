/**
 * Random numbers for whoever is simulated: shoppers, faults, the sandbox gateway's delays. One seed makes a stream for
 * each name, and what one party draws does not depend on when another one does, so that a seed repeats every choice of
 * a run.
 */
import { hash } from "node:crypto";

export type Random = () => number;

/** mulberry32: from 0 to below 1, the same numbers for the same seed and name, anywhere. */
export function randomOf(seed: number, name: string): Random {
  let a = Number.parseInt(hash("sha256", `${seed} ${name}`).slice(0, 8), 16);
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export const pick = <T>(random: Random, list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;

/** A seed that nobody chose; whoever takes it prints it. */
export const anySeed = (): number => Math.floor(Math.random() * 2 ** 31);
