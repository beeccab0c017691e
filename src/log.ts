import { type DestinationStream, type Logger, pino } from "pino";

/** Names under which something a log must not have may hang, here or one level down. */
const SECRET = ["authorization", "cookie", "token", "email", "contact", "shipTo", "address", "phone", "returnUrl"];

/** Database errors carry the statement's parameters in message and stack: contacts, addresses, tokens. */
const withoutParameters = (text: string | undefined) =>
  text?.replace(/\nparams:[\s\S]*?(?=\n {4}at |$)/g, "\nparams: [redacted]");

function describe(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const { code, cause } = error as { code?: unknown; cause?: unknown };
  return {
    type: error.name,
    message: withoutParameters(error.message),
    ...(code !== undefined && { code }),
    stack: withoutParameters(error.stack),
    ...(cause !== undefined && { cause: describe(cause) }),
  };
}

/**
 * JSON lines without contacts, addresses, tokens or bodies; standard error unless told, so that a command's output
 * stays its own.
 */
export function makeLog(
  level: string,
  destination: DestinationStream = pino.destination({ dest: 2, sync: false }),
): Logger {
  return pino(
    {
      level,
      redact: { paths: [...SECRET, ...SECRET.map((s) => `*.${s}`)], censor: "[redacted]" },
      serializers: { err: describe },
    },
    destination,
  );
}
