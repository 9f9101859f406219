// Holds the JavaScript example client against the test vector: node stream_vectors.mjs CLIENT VECTORS
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [client, vectors] = process.argv.slice(2);
const { StreamOpener, StreamError } = await import(pathToFileURL(client).href);
const vector = JSON.parse(await readFile(vectors, "utf8"));
const der = Buffer.from(vector.client_private_key.replace(/-----[A-Z ]+-----|\s/g, ""), "base64");
const privateKey = await crypto.subtle.importKey(
  "pkcs8", der, { name: "RSA-OAEP", hash: "SHA-256" }, false, ["decrypt"]);
const requestKey = new Uint8Array(Buffer.from(vector.request_key, "hex"));
const whole = Buffer.from(vector.stream);
const decode = (bytes) => new TextDecoder().decode(bytes);

async function read(bytes, size = bytes.length || 1, { key = requestKey, id = vector.payload_id } = {}) {
  const opener = new StreamOpener(privateKey, key, id);
  const pieces = [];
  for (let at = 0; at < bytes.length; at += size) {
    for (const piece of await opener.feed(bytes.subarray(at, at + size))) pieces.push(decode(piece));
  }
  opener.close();
  return [...pieces, decode(opener.metadata)];
}

const expected = [...vector.pieces.map((piece) => piece.text), vector.end.text];
assert.deepEqual(await read(whole), expected);
let chunkings = 0;
for (let size = 1; size <= 1000; size += 25) {
  assert.deepEqual(await read(whole, size), expected);
  chunkings++;
}

const events = vector.stream.split(/(?<=\n\n)/);
const flipped = Buffer.from(whole);
flipped[whole.length - 40] ^= 1;
const join = (parts) => Buffer.from(parts.join(""));
const mutations = [
  [join(events.slice(0, -1))],
  [join(events.slice(1))],
  [join([events[0], ...events.slice(2)])],
  [join([events[0], events[2], events[1], ...events.slice(3)])],
  [join([...events.slice(0, 2), ...events.slice(1)])],
  [join([...events, events[1]])],
  [join([...events, events.at(-1)])],
  [join([events[0], "event: end\n" + events[1]])],
  [join([...events.slice(0, -1), events.at(-1).replace("event: end\n", "")])],
  [join([events[0].replace('"processed_at":', '"processed_at": '), ...events.slice(1)])],
  [join([events[0].replace('"stream":"1"', '"stream":"2"'), ...events.slice(1)])],
  [flipped],
  [Buffer.from("data: [DONE]\n\n")],
  [whole, undefined, { id: "other" }],
  [whole, undefined, { key: new Uint8Array(32) }],
];
let refused = 0;
for (const mutation of mutations) {
  await assert.rejects(read(...mutation), StreamError);
  refused++;
}
console.log(JSON.stringify({ read: true, chunkings, refused }));
