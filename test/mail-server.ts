/**
 * A mail server in a process of its own: `node --import ./src/loader.mjs test/mail-server.ts folder port`. Prints its
 * address when it listens.
 */
import { startMailbox } from "../src/local/mailbox.ts";

const [folder = "", port = "0"] = process.argv.slice(2);
const mailbox = await startMailbox(folder, Number(port));
console.log(mailbox.url);
process.once("SIGTERM", () => void mailbox.close().then(() => process.exit(0)));
