/**
 * The house: rooms of src/ by floor, the ground first. A room uses what stands on floors below it, or what is within itself; nothing points
 * up, and nothing goes round in a circle. Types count as well as values.
 */
const FLOORS = [
  ["domain", "log", "client", "loader", "places", "sources", "stack-traces"],
  ["config"],
  ["metrics", "crash-points"],
  ["stores"],
  ["gateways", "local"],
  ["payments"],
  ["context"],
  ["stages"],
  ["recover", "notify"],
  ["workers"],
  ["http"],
  ["web"],
  ["app"],
  ["compose"],
  ["commands"],
  ["main"],
  ["fukubukuro"],
];
const path = (names) => `^src/(${names.join("|")})(/|\\.(tsx?|mjs)$)`;

/** @type {import("dependency-cruiser").IConfiguration} */
module.exports = {
  forbidden: [
    { name: "no-circle", severity: "error", from: { path: "^src/" }, to: { circular: true } },
    ...FLOORS.slice(0, -1).map((names, floor) => ({
      name: `${names.join("-and-")}-points-up`,
      severity: "error",
      from: { path: path(names) },
      to: { path: path(FLOORS.slice(floor + 1).flat()) },
    })),
    // Rooms of one floor do not know each other.
    ...FLOORS.filter((names) => names.length > 1).flatMap((names) =>
      names.map((name) => ({
        name: `${name}-beside`,
        severity: "error",
        from: { path: path([name]) },
        to: { path: path(names.filter((n) => n !== name)) },
      })),
    ),
    {
      name: "a-room-without-a-floor",
      comment: "Name it in FLOORS.",
      severity: "error",
      from: { path: "^src/", pathNot: path(FLOORS.flat()) },
      to: { path: "^src/" },
    },
    { name: "src-knows-no-test", severity: "error", from: { path: "^src/" }, to: { path: "^(test|bench)/" } },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    exclude: "^dist/",
    enhancedResolveOptions: { extensions: [".ts", ".tsx", ".mjs"] },
  },
};
