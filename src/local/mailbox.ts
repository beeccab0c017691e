/** A mailbox for local mode: a real SMTP server on the loopback address that keeps every mail as a file. */
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { nanoid } from "nanoid";
import type { MailReader, StoredMail } from "../domain/order.ts";
import { optional } from "./optional.ts";

export interface Mailbox extends MailReader {
  url: string;
  folder: string;
  close(): Promise<void>;
}

const SHOWN_MAX = 100;
const FILE = /^\d{15}-[A-Za-z0-9_-]{6}\.eml$/;

export async function startMailbox(folder: string, port = 0): Promise<Mailbox> {
  const { SMTPServer } = await optional("smtp-server", "set SMTP_URL", () => import("smtp-server"));
  await mkdir(folder, { recursive: true });
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ["STARTTLS", "AUTH"],
    logger: false,
    onData(stream, _session, done) {
      const chunks: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => {
        const name = `${String(Date.now()).padStart(15, "0")}-${nanoid(6)}.eml`;
        keep(join(folder, name), Buffer.concat(chunks)).then(() => done(), done);
      });
    },
  });
  server.on("error", () => {}); // a client that goes away is no concern of the mailbox
  await new Promise<void>((resolve, reject) => {
    server.server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  return {
    ...readMailbox(folder),
    url: `smtp://127.0.0.1:${(server.server.address() as AddressInfo).port}`,
    folder,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

/** A mail is there whole or not at all, also on a disk that is full. */
async function keep(path: string, mail: Buffer): Promise<void> {
  const part = `${path}.part`;
  try {
    await writeFile(part, mail);
    await rename(part, path);
  } catch (error) {
    await rm(part, { force: true });
    throw error;
  }
}

/** The mails that a mailbox, of this process or another, has kept in a folder. */
export function readMailbox(folder: string): MailReader {
  const names = async () =>
    (await readdir(folder))
      .filter((f) => FILE.test(f))
      .sort()
      .reverse();

  async function read(id: string): Promise<StoredMail | null> {
    if (!FILE.test(`${id}.eml`)) return null;
    const raw = await readFile(join(folder, `${id}.eml`)).catch(() => null);
    if (!raw) return null;
    const { default: PostalMime } = await optional("postal-mime", "read the files", () => import("postal-mime"));
    const mail = await PostalMime.parse(raw);
    const to = mail.to?.map((a) => a.address ?? "").join(", ") ?? "";
    return {
      id,
      at: new Date(Number(id.slice(0, 15))).toISOString(),
      to,
      subject: mail.subject ?? "",
      text: mail.text ?? "",
      html: mail.html ?? "",
      messageId: mail.messageId ?? "",
    };
  }
  return {
    read,
    async list(max = SHOWN_MAX) {
      const mails = await Promise.all((await names()).slice(0, max).map((f) => read(f.slice(0, -4))));
      return mails.filter((m) => m !== null);
    },
  };
}
