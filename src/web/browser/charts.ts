/** The cockpit's two charts: units over time, and requests a second. */
import uPlot from "uplot";
import type { Point } from "../../http/live.ts";
import type { SaleFigures } from "../../http/sale-figures.ts";
import { w } from "./admin.ts";
import { find, language } from "./dom.ts";

const COLOURS = {
  free: "#2a9d8f",
  held: "#e9c46a",
  inPayment: "#f4a261",
  sold: "#c1121f",
  requests: "#264653",
  granted: "#2a9d8f",
  refused: "#b8860b",
  shed: "#c1121f",
};
const CHART_HEIGHT = 240;
const RATES = ["requests", "granted", "refused", "shed"] as const;
const GAP_MS = 4_000;

function chart(selector: string, series: Array<{ label: string; colour: string; fill: boolean }>): uPlot {
  const place = find(selector);
  const plot = new uPlot(
    {
      width: Math.max(280, place.clientWidth),
      height: CHART_HEIGHT,
      legend: { live: false },
      cursor: { show: false },
      scales: { y: { range: (_u, _min, max) => [0, Math.max(1, max * 1.05)] } },
      axes: [
        {
          space: 80,
          values: (_u, splits) =>
            splits.map((at) => new Date(at * 1000).toLocaleTimeString(language, { hour12: false })),
        },
        { size: 56 },
      ],
      series: [
        {},
        ...series.map((s) => ({
          label: s.label,
          stroke: s.colour,
          width: 1,
          points: { show: false },
          ...(s.fill && { fill: s.colour }),
        })),
      ],
    },
    [[]],
    place,
  );
  new ResizeObserver(() => plot.setSize({ width: Math.max(280, place.clientWidth), height: CHART_HEIGHT })).observe(
    place,
  );
  return plot;
}

/**
 * Units of one item, or of all, stacked: sold at the bottom, then in payment, held, free, so that the top line is what
 * was granted.
 */
function stackOf(units: Point["units"][string] | undefined, index: number): Array<number | null> {
  if (!units) return [];
  const items = index >= 0 ? units.slice(index, index + 1) : units;
  const [free = 0, held = 0, paying = 0, sold = 0] = items.reduce<number[]>(
    (sum, i) => sum.map((n, k) => n + (i[k] ?? 0)),
    [0, 0, 0, 0],
  );
  return [sold + paying + held + free, sold + paying + held, sold + paying, sold];
}

/** The same in words, for those who cannot see the chart. */
function describe(sale: SaleFigures): string {
  const sum = (f: (i: SaleFigures["items"][number]) => number) => sale.items.reduce((n, i) => n + f(i), 0);
  const now: Array<[string, number]> = [
    [w.free, sum((i) => i.free)],
    [w.held, sum((i) => i.held)],
    [w.inPayment, sum((i) => Math.max(0, i.claimed - i.sold))],
    [w.sold, sum((i) => i.sold)],
  ];
  return `${w.unitsOverTime}: ${now.map(([label, n]) => `${label} ${n}`).join(", ")}`;
}

/** Makes both; answers how they are drawn anew. `sku` "" is all items. */
export function makeCharts(): (points: Point[], sale: SaleFigures | undefined, sku: string) => void {
  // Drawn from the tallest to the shortest, each over the one before.
  const units = chart("#units-chart", [
    { label: w.free, colour: COLOURS.free, fill: true },
    { label: w.held, colour: COLOURS.held, fill: true },
    { label: w.inPayment, colour: COLOURS.inPayment, fill: true },
    { label: w.sold, colour: COLOURS.sold, fill: true },
  ]);
  const labels = {
    requests: w.requests,
    granted: w.grantedPerSecond,
    refused: w.refusedPerSecond,
    shed: w.shedPerSecond,
  };
  const rates = chart(
    "#rates-chart",
    RATES.map((name) => ({ label: labels[name], colour: COLOURS[name], fill: false })),
  );
  return (points, sale, sku) => {
    const index = sale?.items.findIndex((i) => i.sku === sku) ?? -1;
    const at: number[] = [];
    const stacks: Array<Array<number | null>> = [];
    const perSecond: Array<Array<number | null>> = [];
    for (const [n, p] of points.entries()) {
      // Nobody watched: nothing is known, and nothing is drawn.
      const gap = n > 0 && p.atMs - (points[n - 1] as Point).atMs > GAP_MS;
      at.push(...(gap ? [(p.atMs - 1) / 1000] : []), p.atMs / 1000);
      stacks.push(...(gap ? [[]] : []), stackOf(p.units[sale?.id ?? ""], index));
      perSecond.push(
        ...(gap ? [[]] : []),
        RATES.map((name) => p.rates[name]),
      );
    }
    const column = (rows: Array<Array<number | null>>, k: number) => rows.map((row) => row[k] ?? null);
    units.setData([at, ...[0, 1, 2, 3].map((k) => column(stacks, k))]);
    rates.setData([at, ...RATES.map((_, k) => column(perSecond, k))]);
    if (sale) find("#units-chart").setAttribute("aria-label", describe(sale));
  };
}
