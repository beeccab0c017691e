/** A private disk that can be filled up: a tmpfs, where this machine permits mounting one. */
import { spawnSync } from "node:child_process";
import { mkdtemp, rm, statfs } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const SIZE = "2g";
/** What is left on a full disk: enough to answer a command, not to go on. */
const LEFT_BYTES = 32_768;

export interface Disk {
  folder: string;
  /** Absent where mounting is not permitted: then the folder is an ordinary one. */
  full?: (on: boolean) => Promise<void>;
  close(): Promise<void>;
}

const mount = (...args: string[]) => spawnSync("mount", args).status === 0;

export async function openDisk(name: string): Promise<Disk> {
  const folder = await mkdtemp(join(tmpdir(), name));
  const remove = () => rm(folder, { recursive: true, force: true });
  if (process.getuid?.() !== 0 || !mount("-t", "tmpfs", "-o", `size=${SIZE},mode=700`, "tmpfs", folder))
    return { folder, close: remove };
  return {
    folder,
    async full(on) {
      const { blocks, bfree, bsize } = await statfs(folder);
      const size = on ? String((blocks - bfree) * bsize + LEFT_BYTES) : SIZE;
      if (!mount("-o", `remount,size=${size}`, folder))
        throw new Error(`the disk could not be made ${on ? "full" : "large"}`);
    },
    async close() {
      spawnSync("umount", ["-l", folder]);
      await remove();
    },
  };
}
