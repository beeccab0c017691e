/** Packages that only local mode needs: a production node is installed without them (`npm ci --omit=optional`). */
import { StartError } from "../domain/errors.ts";

/** Loads one; where it was left out the error is one sentence, with what to do `instead`. */
export async function optional<T>(name: string, instead: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (error) {
    const absent = (error as NodeJS.ErrnoException).code === "ERR_MODULE_NOT_FOUND" && String(error).includes(name);
    if (!absent) throw error;
    throw new StartError(
      `${name} is not installed, and local mode needs it: run npm ci without --omit=optional, or ${instead}.`,
    );
  }
}
