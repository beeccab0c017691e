#!/usr/bin/env node
// Runs the TypeScript sources as they are; the one place that needs a loader.
import "tsx";

await import("./main.ts");
