/** Ten times the connections that saturate it: what still gets done, and how it is afterwards. */
import { load, sent, Wrong } from "./load.ts";
import type { Overload } from "./report.ts";
import { post, type World } from "./scenarios.ts";

const TIMES = 10;
const HEALTH_EVERY_MS = 100;

async function memory(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^fukubukuro_process_resident_memory_bytes(?:\{[^}]*\})? (\S+)/m.exec(text)?.[1]);
}

/** Asks for health all the while; answers the slowest. */
function watchHealth(url: string): () => Promise<number> {
  let slowest = 0;
  let on = true;
  const watching = (async () => {
    while (on) {
      const began = performance.now();
      await (await fetch(`${url}/healthz`)).text();
      slowest = Math.max(slowest, performance.now() - began);
      await new Promise((resolve) => setTimeout(resolve, HEALTH_EVERY_MS));
    }
  })();
  return async () => {
    on = false;
    await watching;
    return Math.round(slowest);
  };
}

export async function overload(w: World): Promise<Overload> {
  const { target, op, o } = w;
  const good = (statuses: Record<string, number>) => statuses["201"] ?? 0;
  const storm = async (connections: number) => {
    const saleId = await op.makeSale(10_000_000);
    const f = await load(target.url, { amount: o.requests, connections }, post(w, `/v1/sales/${saleId}/reservations`, `x${connections}`));
    const { 201: held = 0, 503: shed = 0, ...other } = f.statuses as Record<number, number>;
    if (Object.keys(other).length > 0 || held + shed !== sent(o.requests, connections)) throw new Wrong(`overload: answers were ${JSON.stringify(f.statuses)}`);
    await op.checkBooks(saleId, { held });
    return { f, goodput: f.perSecond * (good(f.statuses) / (held + shed)) };
  };
  const { f: normal, goodput: best } = await storm(o.connections);
  const before = await memory(target.url);
  const health = watchHealth(target.url);
  const { f, goodput } = await storm(o.connections * TIMES);
  const healthMsMax = await health();
  w.note(`reserve, ${o.connections * TIMES} connections`, f);
  const over = performance.now();
  let backAfterMs: number | null = null;
  while (backAfterMs === null && performance.now() - over < 10_000) {
    const saleId = await op.makeSale(1_000_000);
    const { p50 } = await load(target.url, { amount: 4_000, connections: o.connections }, post(w, `/v1/sales/${saleId}/reservations`, `b${over}`));
    if (p50 <= normal.p50 * 1.5) backAfterMs = Math.round(performance.now() - over);
  }
  return { best, goodput, healthMsMax, rssGrowth: (await memory(target.url)) / before, backAfterMs };
}
