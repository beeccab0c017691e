/**
 * A link to Postgres that lets a transaction commit and loses the answer: it reads the protocol, holds back what comes
 * from CommandComplete on until ReadyForQuery says that no transaction is open any more, and then resets the link
 * instead of passing it on. What kind of transaction it was is told by its writing statements, so that every kind is
 * met, also one that is added later.
 */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface CommitProxy {
  port: number;
  /**
   * Asked for each committed transaction that wrote something; true loses its answer. `nth`: how often this kind was
   * seen, from 1.
   */
  decide(f: (kind: string, nth: number) => boolean): void;
  /** Kinds whose answer was lost, and how often. */
  lost: Map<string, number>;
  close(): Promise<void>;
}

const WRITES = /^\s*(with\b[\s\S]*\b(insert|update|delete)\b|insert|update|delete)/i;

/** Messages of one direction; the first of a client has no type. */
function framer(hasType: () => boolean) {
  let rest: Buffer = Buffer.alloc(0);
  return (chunk: Buffer): Buffer[] => {
    rest = Buffer.concat([rest, chunk]);
    const messages: Buffer[] = [];
    for (;;) {
      const head = hasType() ? 1 : 0;
      if (rest.length < head + 4) return messages;
      const size = head + rest.readUInt32BE(head);
      if (rest.length < size) return messages;
      messages.push(rest.subarray(0, size));
      rest = rest.subarray(size);
    }
  };
}
const typeOf = (m: Buffer) => String.fromCharCode(m[0] as number);
const text = (m: Buffer, from: number) => m.toString("utf8", from, m.indexOf(0, from));

/** One statement as part of a kind: its parameters are numbered anyway, its length does not matter. */
const shorten = (sql: string) => sql.replace(/\s+/g, " ").trim().slice(0, 500);

export async function startCommitProxy(targetPort: number): Promise<CommitProxy> {
  const sockets = new Set<Socket>();
  const seen = new Map<string, number>();
  const lost = new Map<string, number>();
  let decide: (kind: string, nth: number) => boolean = () => false;

  const server = createServer((client) => {
    const target = connect(targetPort, "127.0.0.1");
    sockets.add(client).add(target);
    let started = false;
    const statements = new Map<string, string>();
    const fromClient = framer(() => started);
    const fromServer = framer(() => true);
    let writes: string[] = [];
    let held: Buffer[] = [];
    let bound = "";

    const heard = (m: Buffer) => {
      const type = typeOf(m);
      if (!started) {
        started = true; // the startup message; these clients ask for no encryption
        return;
      }
      if (type === "Q") note(text(m, 5));
      if (type === "P") {
        const name = text(m, 5);
        statements.set(name, text(m, 5 + Buffer.byteLength(name) + 1));
      }
      if (type === "B") {
        const portal = text(m, 5);
        bound = statements.get(text(m, 5 + Buffer.byteLength(portal) + 1)) ?? "";
      }
      if (type === "E") note(bound);
    };
    const note = (sql: string) => void (WRITES.test(sql) && writes.push(shorten(sql)));
    const answered = (m: Buffer) => {
      const type = typeOf(m);
      if (type === "C" || held.length > 0) held.push(m);
      else client.write(m);
      if (type !== "Z") return;
      if (String.fromCharCode(m[5] as number) === "I" && writes.length > 0) {
        const kind = writes.join("; ");
        const nth = (seen.get(kind) ?? 0) + 1;
        writes = [];
        const rolledBack = held.some((h) => typeOf(h) === "C" && text(h, 5) === "ROLLBACK");
        if (!rolledBack) {
          seen.set(kind, nth);
          if (decide(kind, nth)) {
            lost.set(kind, (lost.get(kind) ?? 0) + 1);
            client.resetAndDestroy();
            target.destroy();
            return;
          }
        }
      }
      for (const h of held) client.write(h);
      held = [];
    };
    client.on("data", (chunk) => {
      for (const m of fromClient(chunk)) heard(m);
      target.write(chunk);
    });
    target.on("data", (chunk) => {
      for (const m of fromServer(chunk)) if (!client.destroyed) answered(m);
    });
    for (const [a, b] of [
      [client, target],
      [target, client],
    ] as const) {
      a.on("error", () => {});
      a.on("close", () => {
        b.destroy();
        sockets.delete(a);
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    decide: (f) => (decide = f),
    lost,
    close: () =>
      new Promise((resolve) => {
        for (const s of sockets) s.destroy();
        server.close(() => resolve());
      }),
  };
}
