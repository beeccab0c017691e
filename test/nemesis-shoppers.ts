/**
 * The shoppers of a campaign: each presses until there is an outcome, by a stream of choices of its own, and remembers
 * what it was told.
 */
import { pick, type Random, randomOf } from "../src/local/random.ts";
import type { Processes } from "./nemesis-servers.ts";
import { inParallel, pause, shopper } from "./support.ts";

const TRIES_MAX = 400;
/** How a shopper pays, and pays again after a decline. */
const PAYMENTS: Array<Array<Record<string, string>>> = [
  [{ token: "tok_ok" }],
  [{ gateway: "cod" }],
  [{ token: "tok_declined" }, { token: "tok_ok" }],
  [{ token: "tok_timeout_after_charge" }],
  [{ token: "tok_error_then_ok" }],
];

/** Asks one of the two api processes; null where there was no answer. */
export const askOne = <T>(processes: Processes, random: Random, f: (url: string) => Promise<T>): Promise<T | null> =>
  f(processes.api(random() < 0.5 ? 0 : 1).url).catch(() => null);

export class Shoppers {
  /** Order ids of every answer "confirmed". */
  readonly confirmed = new Set<string>();
  lost = 0;
  /** Everything was healed long ago: who still waits has met a fault of ours. */
  tired = false;
  /** Who pays, and the last it was told. */
  readonly waiting = new Map<string, string>();

  constructor(
    private readonly processes: Processes,
    private readonly saleId: string,
    private readonly seed: number,
  ) {}

  /** All of them; they arrive within `ms`. */
  async shop(count: number, ms: number): Promise<void> {
    const one = (i: number) => async () => {
      const id = `c${i}`;
      const random = randomOf(this.seed, `shopper-${i}`);
      await pause(random() * ms);
      await this.press(id, random).finally(() => !this.tired && this.waiting.delete(id));
    };
    await inParallel(
      count,
      Array.from({ length: count }, (_, i) => one(i)),
    );
  }

  private async press(id: string, random: Random): Promise<void> {
    const payments = pick(random, PAYMENTS);
    for (let tries = 0; tries < TRIES_MAX && !this.tired; tries++) {
      const held = await askOne(this.processes, random, (u) => shopper(u, id).reserve(this.saleId, "k"));
      if (held?.status === 409 && held.body.code === "SOLD_OUT") return;
      if (held?.status === 410) return void this.lost++;
      if (held?.body.status === "expired" || held?.body.status === "released") return;
      if (held?.body.status === "confirmed") return void this.confirmed.add(held.body.orderId as string);
      if (held?.status === 200 || held?.status === 201) {
        const payment = payments.length > 1 && tries > 0 ? payments[1] : payments[0];
        const paid = await askOne(this.processes, random, (u) =>
          shopper(u, id).confirm(held.body.id, payment, { waitS: 2 }),
        );
        const answer = `${paid?.status} ${JSON.stringify(paid?.body)?.slice(0, 300)}`;
        this.waiting.set(id, `held ${held.status} ${held.body.status}, then ${answer}`);
        if (paid?.body.status === "confirmed") return void this.confirmed.add(paid.body.orderId as string);
        if (paid?.body.code === "HOLD_LOST") return void this.lost++;
      }
      await pause(100 + random() * 200);
    }
  }
}
