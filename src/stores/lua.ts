/** Loads lua/ and runs its scripts: the one place where a script's text, keys and arguments meet Redis. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ArgumentRefused, StaleEpoch, Unavailable } from "../domain/errors.ts";
import { LUA_FOLDER } from "../places.ts";
import type { Redis } from "./redis.ts";

/** Transitions of a sale get the prelude; the others stand alone. */
const ALONE = new Set(["fence", "install", "line_join", "line_take", "permit_take", "permit_give", "gate_view"]);

/** Text of a script as Redis gets it: the shebang line first, then the prelude, then the script. */
export function scriptText(name: string): string {
  const own = readFileSync(join(LUA_FOLDER, `${name}.lua`), "utf8");
  if (ALONE.has(name)) return own;
  const lineEnd = own.indexOf("\n");
  return `${own.slice(0, lineEnd)}\n${readFileSync(join(LUA_FOLDER, "prelude.lua"), "utf8")}${own.slice(lineEnd)}`;
}

export function scriptNames(): string[] {
  return readdirSync(LUA_FOLDER)
    .filter((f) => f.endsWith(".lua") && f !== "prelude.lua")
    .map((f) => f.slice(0, -4));
}

/**
 * An error of Lua itself, at something it was given. What a server answers of its own state begins with another word
 * (OOM, READONLY, BUSY ...).
 */
const SCRIPT_STOPPED = /^ERR .*user_script:\d+:/s;

/** Runs a script by name. An expected refusal is a value; an exception is a fault and means "unknown". */
export type RunScript = (name: string, keys: string[], args: Array<string | number>) => Promise<string[]>;

type Command = (...args: Array<string | number>) => Promise<string[]>;

export function loadScripts(redis: Redis): RunScript {
  for (const name of scriptNames()) redis.client.defineCommand(`fb_${name}`, { lua: scriptText(name) });
  // defineCommand puts a method of that name on the client, which its type cannot know.
  const commands = redis.client as unknown as Record<string, Command>;

  return async function runScript(name, keys, args) {
    if (!redis.instance()) throw new Unavailable("Redis is away");
    try {
      return await (commands[`fb_${name}`] as Command).call(redis.client, keys.length, ...keys, ...args);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (message.includes("BROKEN ")) throw new StaleEpoch("", message);
      if (message.includes("ARGUMENT ") || SCRIPT_STOPPED.test(message))
        throw new ArgumentRefused(`${name}: ${message}`, { cause: error });
      throw new Unavailable(`Redis did not answer ${name}: ${message}`, 1000, { cause: error });
    }
  };
}
