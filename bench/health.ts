/**
 * Asks `url` for its health ten times a second until SIGTERM, then prints the slowest answer in ms. A process of its
 * own: the generator's would wait for the generator.
 */
const EVERY_MS = 100;
const url = process.argv[2] as string;
let slowest = 0;
let on = true;
process.on("SIGTERM", () => {
  on = false;
});
console.log("asking");
while (on) {
  const began = performance.now();
  const { ok } = await fetch(`${url}/healthz`);
  slowest = ok ? Math.max(slowest, performance.now() - began) : Number.POSITIVE_INFINITY;
  await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
}
console.log(slowest);
