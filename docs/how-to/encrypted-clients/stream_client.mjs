// A chat over Paddock's encrypted stream (version 1), token by token: WebCrypto and fetch alone, Node 20 or a browser.
//
//     node stream_client.mjs https://gateway.example nz_… llama3.1:8b "Why is the sky blue?" [fingerprint]
//
// The protocol and its test vectors are in docs/reference/envelope-protocol.md. With a fingerprint (`paddock
// server-key` shows it) the server's key is pinned; without one it is believed as far as TLS is.

const { subtle } = globalThis.crypto;
const OAEP = { name: "RSA-OAEP", hash: "SHA-256" };
const LABEL = "paddock envelope stream 1\0";
const MAX_LINE = 131072; // a record is at most 64 KiB of text, padded, enciphered and in base64

export class StreamError extends Error {} // not what the server made for this request: throw away what came of it

const utf8 = (text) => new TextEncoder().encode(text);
const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
function join(...parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  return whole;
}
const sha256 = async (data) => new Uint8Array(await subtle.digest("SHA-256", data));

/** The package to send, and its AES key, which StreamOpener needs. */
export async function sealRequest(body, serverPem, fingerprint = "") {
  const der = fromBase64(serverPem.replace(/-----[A-Z ]+-----|\s/g, ""));
  const hex = Array.from(await sha256(der), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (fingerprint && hex !== fingerprint) throw new StreamError("the server's key is not the pinned one");
  const serverKey = await subtle.importKey("spki", der, OAEP, false, ["encrypt"]);
  const requestKey = crypto.getRandomValues(new Uint8Array(32));
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  const key = await subtle.importKey("raw", requestKey, "AES-GCM", false, ["encrypt"]);
  const sealed = new Uint8Array(await subtle.encrypt({ name: "AES-GCM", iv: nonce }, key, utf8(JSON.stringify(body))));
  const wrapped = new Uint8Array(await subtle.encrypt(OAEP, serverKey, requestKey));
  const text = JSON.stringify({
    version: "1.0",
    algorithm: "hybrid-aes256-rsa4096",
    encrypted_payload: {
      ciphertext: toBase64(sealed.subarray(0, -16)), nonce: toBase64(nonce), tag: toBase64(sealed.subarray(-16)),
    },
    encrypted_aes_key: toBase64(wrapped),
  });
  return { text, requestKey };
}

/** Bytes of the answer in, pieces of the plain event stream out. Only after `finished` is the answer complete. */
export class StreamOpener {
  #privateKey; #requestKey; #id; #buffer = ""; #event = ""; #counter = 0n; #key = null; #prefix = null;
  finished = false;
  metadata = new Uint8Array();

  constructor(privateKey, requestKey, payloadId) {
    this.#privateKey = privateKey;
    this.#requestKey = requestKey;
    this.#id = utf8(payloadId);
  }

  /** The pieces that are complete with these bytes; throws StreamError as soon as anything is wrong. */
  async feed(bytes) {
    const lines = (this.#buffer + new TextDecoder("latin1").decode(bytes)).split("\n");
    this.#buffer = lines.pop();
    if ([this.#buffer, ...lines].some((line) => line.length > MAX_LINE)) throw new StreamError("a line is too long");
    const pieces = [];
    for (const line of lines) {
      if (line.startsWith("event: ")) this.#event = line.slice(7);
      else if (line.startsWith("data: ")) {
        const event = this.#event;
        this.#event = "";
        const piece = await this.#data(event, line.slice(6));
        if (piece.length) pieces.push(piece);
      } else if (line && !line.startsWith(":")) throw new StreamError("not an encrypted stream");
    }
    return pieces;
  }

  /** To be called where the answer ends: an answer that was cut is an error, however good it looks. */
  close() {
    if (!this.finished) throw new StreamError("the stream was cut");
  }

  async #data(event, data) {
    if (this.finished || (this.#key === null) !== (event === "envelope")) throw new StreamError("an event out of place");
    if (event === "envelope") {
      await this.#begin(data);
      return new Uint8Array();
    }
    if (event !== "" && event !== "end") throw new StreamError("an unknown event");
    const piece = await this.#open(event === "end" ? 1 : 0, data);
    if (event === "") return piece;
    this.finished = true;
    this.metadata = piece;
    return new Uint8Array();
  }

  async #begin(header) {
    let secret;
    try {
      const { version, algorithm, stream, encrypted_secret: wrapped } = JSON.parse(header);
      if (version !== "1.0" || algorithm !== "hybrid-aes256-rsa4096" || stream !== "1") throw new Error("unknown");
      secret = new Uint8Array(await subtle.decrypt(OAEP, this.#privateKey, fromBase64(wrapped)));
    } catch (cause) {
      throw new StreamError("the header does not open", { cause });
    }
    if (secret.length !== 32) throw new StreamError("the header does not open");
    const material = await subtle.importKey("raw", join(secret, this.#requestKey), "HKDF", false, ["deriveBits"]);
    const info = join(utf8(LABEL), await sha256(utf8(header)), this.#id);
    const derived = new Uint8Array(await subtle.deriveBits(
      { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info }, material, 36 * 8));
    this.#key = await subtle.importKey("raw", derived.subarray(0, 32), "AES-GCM", false, ["decrypt"]);
    this.#prefix = derived.slice(32);
  }

  async #open(kind, record) {
    const counter = new Uint8Array(8);
    new DataView(counter.buffer).setBigUint64(0, this.#counter++);
    let padded;
    try {
      const sealed = fromBase64(record);
      if (toBase64(sealed) !== record) throw new Error("not canonical base64");
      const additionalData = join(utf8(LABEL), Uint8Array.of(kind), counter, this.#id);
      padded = new Uint8Array(await subtle.decrypt(
        { name: "AES-GCM", iv: join(this.#prefix, counter), additionalData }, this.#key, sealed));
    } catch (cause) {
      throw new StreamError("a record does not open", { cause });
    }
    let end = padded.length;
    while (end > 0 && padded[end - 1] === 0) end--;
    if (end === 0 || padded[end - 1] !== 0x80) throw new StreamError("a record is not padded");
    return padded.subarray(0, end - 1);
  }
}

/** The plain event stream of one chat, as text, while it arrives. */
export async function* chat({ baseUrl, apiKey, body, fingerprint = "" }) {
  const pair = await subtle.generateKey(
    { ...OAEP, modulusLength: 4096, publicExponent: Uint8Array.of(1, 0, 1) }, true, ["encrypt", "decrypt"]);
  const der = toBase64(new Uint8Array(await subtle.exportKey("spki", pair.publicKey)));
  const pem = `-----BEGIN PUBLIC KEY-----\n${der.match(/.{1,64}/g).join("\n")}\n-----END PUBLIC KEY-----\n`;
  const payloadId = crypto.randomUUID();
  const serverKey = await fetch(`${baseUrl}/pki/public_key`);
  if (!serverKey.ok) throw new Error(`no server key: ${serverKey.status}`);
  const { text, requestKey } = await sealRequest({ ...body, stream: true }, await serverKey.text(), fingerprint);
  const answer = await fetch(`${baseUrl}/v1/chat/secure_completion`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${apiKey}`,
      "Content-Type": "application/octet-stream",
      "X-Payload-ID": payloadId,
      "X-Public-Key": encodeURIComponent(pem),
      "X-Envelope-Stream": "1",
    },
    body: text,
  });
  if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.json()).detail}`);
  const opener = new StreamOpener(pair.privateKey, requestKey, payloadId);
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    for (const piece of await opener.feed(read.value)) yield decoder.decode(piece, { stream: true });
  }
  opener.close();
}

if (globalThis.process?.argv[1] && import.meta.url === new URL(process.argv[1], "file:").href) {
  const [baseUrl, apiKey, model, prompt, fingerprint] = process.argv.slice(2);
  const body = { model, messages: [{ role: "user", content: prompt }] };
  let plain = "";
  for await (const text of chat({ baseUrl, apiKey, body, fingerprint })) {
    const lines = (plain + text).split("\n");
    plain = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data: {"))) {
      for (const choice of JSON.parse(line.slice(6)).choices ?? []) process.stdout.write(choice.delta?.content ?? "");
    }
  }
  process.stdout.write("\n");
}
