/** Ten times the connections that saturate it: what still gets done, and how it is afterwards. */
import { startGuarded } from "../src/local/processes.ts";
import { programOf } from "../src/places.ts";
import { load, median, sent, Wrong } from "./load.ts";
import type { Overload } from "./report.ts";
import { post, type World } from "./scenarios.ts";

const TIMES = 10;
/** The first storm makes room for its connections; whether memory grows shows in those after it. */
const STORMS = 3;

async function memory(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^fukubukuro_process_resident_memory_bytes(?:\{[^}]*\})? (\S+)/m.exec(text)?.[1]);
}

/** Asks for health all the while; answers the slowest in ms. */
async function watchHealth(url: string): Promise<() => Promise<number>> {
  let asks: (line: string) => void = () => {};
  const asking = new Promise<string>((resolve) => {
    asks = resolve;
  });
  const watch = startGuarded("health", [...programOf(new URL("./health.ts", import.meta.url)), url], {
    signal: "TERM",
    onLine: asks,
  });
  await Promise.race([asking, watch.endedEarly]);
  return async () => {
    await watch.stop();
    return Math.round(Number(watch.output().trim().split("\n").at(-1)));
  };
}

export async function overload(w: World): Promise<Overload> {
  const { target, op, o } = w;
  const good = (statuses: Record<string, number>) => statuses["201"] ?? 0;
  const storm = async (connections: number) => {
    const saleId = await op.makeSale(10_000_000);
    const f = await load(
      target.url,
      { amount: o.requests, connections },
      post(w, `/v1/sales/${saleId}/reservations`, `x${connections}`),
    );
    const { 201: held = 0, 503: shed = 0, ...other } = f.statuses as Record<number, number>;
    if (Object.keys(other).length > 0 || held + shed !== sent(o.requests, connections))
      throw new Wrong(`overload: answers were ${JSON.stringify(f.statuses)}`);
    await op.checkBooks(saleId, { held });
    return { f, goodput: f.perSecond * (good(f.statuses) / (held + shed)) };
  };
  const { f: normal, goodput: best } = await storm(o.connections);
  const rss = [await memory(target.url)];
  const health = await watchHealth(target.url);
  const goodputs: number[] = [];
  for (let n = 1; n <= STORMS; n++) {
    const { f, goodput } = await storm(o.connections * TIMES);
    w.note(`reserve, ${o.connections * TIMES} connections`, f);
    goodputs.push(goodput);
    rss.push(await memory(target.url));
  }
  const healthMsMax = await health();
  const over = performance.now();
  let backAfterMs: number | null = null;
  while (backAfterMs === null && performance.now() - over < 10_000) {
    const saleId = await op.makeSale(1_000_000);
    const { p50 } = await load(
      target.url,
      { amount: 4_000, connections: o.connections },
      post(w, `/v1/sales/${saleId}/reservations`, `b${over}`),
    );
    if (p50 <= normal.p50 * 1.5) backAfterMs = Math.round(performance.now() - over);
  }
  const growths = rss.slice(1).map((bytes, n) => bytes / (rss[n] as number));
  return { best, goodput: median(goodputs), healthMsMax, growths, backAfterMs };
}
