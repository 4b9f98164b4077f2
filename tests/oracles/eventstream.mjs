// Writes and reads AWS event stream messages with `@smithy/eventstream-codec`.
//
// Standard input: {"write": [{"headers", "body"}], "read": [message]}, bodies and messages in base64.
// Standard output: {"written": [message], "read": [{"headers", "body"} or {"error"}]}.
// A header is {"type", "value"}; long, binary and uuid values are text, a timestamp is in milliseconds.

import { createRequire } from "node:module";

const { EventStreamCodec, Int64 } = createRequire(`${process.argv[2]}/`)("@smithy/eventstream-codec");
const utf8 = new TextDecoder("utf-8", { fatal: true });
const codec = new EventStreamCodec((bytes) => utf8.decode(bytes), (text) => new TextEncoder().encode(text));

const opened = {
  long: (text) => Int64.fromNumber(Number(text)),
  binary: (text) => Buffer.from(text, "base64"),
  timestamp: (milliseconds) => new Date(milliseconds),
};
const closed = {
  long: (value) => value.valueOf().toString(),
  binary: (value) => Buffer.from(value).toString("base64"),
  timestamp: (value) => value.getTime(),
};

function changed(headers, by) {
  const entries = Object.entries(headers);
  return Object.fromEntries(
    entries.map(([name, { type, value }]) => [name, { type, value: by[type] ? by[type](value) : value }]),
  );
}

function read(message) {
  try {
    const { headers, body } = codec.decode(Buffer.from(message, "base64"));
    return { headers: changed(headers, closed), body: Buffer.from(body).toString("base64") };
  } catch (error) {
    return { error: String(error) };
  }
}

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const asked = JSON.parse(Buffer.concat(chunks).toString());
const written = asked.write.map(({ headers, body }) =>
  Buffer.from(codec.encode({ headers: changed(headers, opened), body: Buffer.from(body, "base64") })).toString("base64"),
);
process.stdout.write(JSON.stringify({ written, read: asked.read.map(read) }));
