/** What a run leaves: tables for people, JSON for comparing, and a page with charts that needs no network. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { type Measured, median } from "./load.ts";
import type { PersistResults } from "./persist.ts";
import type { Checkout, Opening } from "./scenarios.ts";
import type { ScriptResults } from "./scripts.ts";

export interface Overload {
  best: number;
  goodput: number;
  healthMsMax: number;
  /** Memory after each storm, as a multiple of before it. */
  growths: number[];
  backAfterMs: number | null;
}

export interface Results {
  at: string;
  machine: string;
  options: Record<string, unknown>;
  rows: Record<string, Array<Pick<Measured, "perSecond" | "p50" | "p99" | "statuses">>>;
  opening?: Opening;
  checkouts: Checkout[];
  slowGateway?: { perSecond: number; floorPerSecond: number };
  scripts?: ScriptResults;
  persist?: PersistResults;
  overload?: Overload;
  memory?: string;
}

export interface Row {
  name: string;
  perSecond: number;
  p50: number;
  p99: number;
  floor: string | null;
  ratio: number | null;
}

const ECHO = "Hono echo, POST (floor)";
const GET = "Hono answer, GET (floor)";
export const ROW_LOCK = "Postgres row lock (floor)";
/** Which floor a scenario stands beside: the one that takes and answers the same. */
const floorOf = (name: string): string | null =>
  /held at/.test(name) || /^(the opening|reserve and confirm)/.test(name)
    ? null
    : name === ECHO || name === GET
      ? null
      : name === "GET sale"
        ? GET
        : ECHO;

/**
 * Medians over the rounds; ratios are medians of each round's own ratio, since machines change their speed between
 * rounds.
 */
export function rowsOf(r: Pick<Results, "rows">): Row[] {
  return Object.entries(r.rows).map(([name, all]) => {
    const floor = floorOf(name);
    const floors = floor ? r.rows[floor] : undefined;
    const ratio = floors ? median(all.map((f, i) => f.perSecond / (floors[i]?.perSecond ?? Number.NaN))) : null;
    return {
      name,
      perSecond: median(all.map((f) => f.perSecond)),
      p50: median(all.map((f) => f.p50)),
      p99: median(all.map((f) => f.p99)),
      floor,
      ratio,
    };
  });
}

const whole = (n: number) => Math.round(n).toLocaleString("en");

export function table(r: Results): string {
  const rows = rowsOf(r);
  const rowLock = rows.find((x) => x.name === ROW_LOCK)?.perSecond;
  const lines = rows.map((x) => {
    const lock = rowLock && x.ratio !== null ? (x.perSecond / rowLock).toFixed(1) : "";
    return `| ${x.name} | ${whole(x.perSecond)} | ${x.p50} | ${x.p99} | ${x.ratio === null ? "" : x.ratio.toFixed(2)} | ${lock} |`;
  });
  return [
    "| scenario | per second | p50 ms | p99 ms | x its floor | x row lock |",
    "|---|---|---|---|---|---|",
    ...lines,
  ].join("\n");
}

export function sentences(r: Results): string[] {
  const out: string[] = [];
  if (r.opening) {
    const o = r.opening;
    out.push(
      `Opening: ${whole(o.beforePerSecond)} a second told "not open yet" until the opening; ${whole(o.firstSecondPerSecond)} answered in the first second after it; first grant ${o.firstGrantMs} ms after it, the last of ${o.stock} after ${o.soldOutMs} ms (in tenths of a second).`,
    );
  }
  for (const c of r.checkouts)
    out.push(
      `Checkout, ${c.gateway}: ${c.orders} orders, ${Math.round(c.perSecond)}/s from the first reserve to the last record; captured-to-recorded lag p50 ${c.lagP50Ms} ms, p99 ${c.lagP99Ms} ms.`,
    );
  if (r.slowGateway)
    out.push(
      `Slow gateway: ${r.slowGateway.perSecond.toFixed(1)} orders/s, ${(r.slowGateway.perSecond / r.slowGateway.floorPerSecond).toFixed(2)} of what its limit and latency allow (${r.slowGateway.floorPerSecond.toFixed(1)}/s).`,
    );
  if (r.scripts) {
    const { perSecond: p, bytesPerHold, growth, skus } = r.scripts;
    out.push(
      `Scripts alone: ${Object.entries(p)
        .map(([batch, n]) => `${whole(n)}/s at ${batch} a call`)
        .join(
          ", ",
        )}; 128 a call is ${((p[128] ?? 0) / (p[1] ?? 1)).toFixed(1)} x one a call; ${Math.round(bytesPerHold)} bytes of Redis a live hold.`,
      `Redis' own time a reservation: ${growth.map((g) => `${g.usec.toFixed(1)} us at ${whole(g.holds)} holds`).join(", ")} (x ${growth.at(-1)?.times.toFixed(2)} that of a sale of ${whole(growth[0]?.holds ?? 0)}, by turns); ${skus.map((g) => `${g.usec.toFixed(1)} us with ${g.skus} items`).join(", ")}.`,
    );
  }
  if (r.persist) out.push(`persist alone: ${whole(r.persist.perSecond)} orders/s (${whole(r.persist.orders)} orders).`);
  if (r.overload) {
    const v = r.overload;
    out.push(
      `Ten times the connections: ${(v.goodput / v.best).toFixed(2)} of the best goodput, health answered within ${v.healthMsMax} ms, memory after one storm after another ${v.growths.map((x) => `x ${x.toFixed(2)}`).join(", ")}, ${v.backAfterMs === null ? "not back to normal" : `back to normal after ${v.backAfterMs} ms`}.`,
    );
  }
  if (r.memory) out.push(`${r.memory}, after a collection at the end of all this.`);
  return out;
}

/** Each scenario of this run beside the same of an older one. */
export function compare(now: Results, old: Results): string {
  const before = new Map(rowsOf(old).map((r) => [r.name, r]));
  const lines = rowsOf(now).flatMap((r) => {
    const b = before.get(r.name);
    if (!b) return [];
    const ratios = r.ratio === null || b.ratio === null ? "" : `${b.ratio.toFixed(2)} -> ${r.ratio.toFixed(2)}`;
    return [
      `| ${r.name} | ${whole(b.perSecond)} | ${whole(r.perSecond)} | ${(r.perSecond / b.perSecond).toFixed(2)} | ${ratios} |`,
    ];
  });
  return [`| scenario | ${old.at} | ${now.at} | x | x its floor |`, "|---|---|---|---|---|", ...lines].join("\n");
}

const escapeHtml = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** The page: tables as they are printed, charts by uPlot, everything inside the one file. */
export function page(r: Results): string {
  const require = createRequire(import.meta.url);
  const script = readFileSync(require.resolve("uplot/dist/uPlot.iife.min.js"), "utf8");
  const style = readFileSync(require.resolve("uplot/dist/uPlot.min.css"), "utf8");
  const rows = rowsOf(r);
  const data = {
    names: rows.map((x) => x.name),
    perSecond: rows.map((x) => Math.round(x.perSecond)),
    timeline: r.opening?.timeline ?? [],
    growth: r.scripts?.growth ?? [],
  };
  const cells = table(r)
    .split("\n")
    .filter((_, i) => i !== 1)
    .map((line, i) => {
      const tag = i === 0 ? "th" : "td";
      return `<tr>${line
        .slice(2, -2)
        .split(" | ")
        .map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`)
        .join("")}</tr>`;
    });
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fukubukuro bench ${escapeHtml(r.at)}</title><style>${style}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}table{border-collapse:collapse}td,th{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}.u-legend{font-size:14px}</style></head><body>
<h1>Fukubukuro bench</h1><p>${escapeHtml(r.at)}<br>${escapeHtml(r.machine)}</p>
<table>${cells.join("")}</table>
<ul>${sentences(r)
    .map((s) => `<li>${escapeHtml(s)}</li>`)
    .join("")}</ul>
<h2>Answers per second</h2><div id="bars"></div><h2>The opening, answers per tenth of a second</h2><div id="opening"></div><h2>Redis' time a reservation, by live holds</h2><div id="growth"></div>
<script>${script}</script>
<script>const d=${JSON.stringify(data)};
const at=(id,o,x)=>new uPlot(Object.assign({width:960,height:320},o),x,document.getElementById(id));
at("bars",{scales:{x:{time:false,range:[-1,d.names.length]},y:{range:[0,null]}},axes:[{values:(u,v)=>v.map(i=>d.names[i]?d.names[i].slice(0,22):""),rotate:-30,size:110,splits:()=>d.names.map((_,i)=>i)},{size:70}],
series:[{label:"scenario",value:(u,v)=>d.names[v]??""},{label:"per second",stroke:"#0b57d0",fill:"#0b57d055",paths:uPlot.paths.bars({size:[.6]})}]},[d.names.map((_,i)=>i),d.perSecond]);
const codes=[...new Set(d.timeline.flatMap(t=>Object.keys(t)))],colors={"201":"#0a6b2d","403":"#9aa0a6","409":"#b00020"};
if(d.timeline.length)at("opening",{scales:{x:{time:false}},axes:[{values:(u,v)=>v.map(x=>x+" s")},{size:70}],series:[{label:"s"},...codes.map(c=>({label:c,stroke:colors[c]??"#0b57d0",width:2}))]},
[d.timeline.map((_,i)=>i/10),...codes.map(c=>d.timeline.map(t=>t[c]??0))]);
if(d.growth.length)at("growth",{scales:{x:{time:false,distr:3},y:{range:[0,null]}},axes:[{},{size:70}],series:[{label:"live holds"},{label:"us",stroke:"#0b57d0",width:2,points:{show:true}}]},[d.growth.map(g=>g.holds),d.growth.map(g=>g.usec)]);
</script></body></html>`;
}
