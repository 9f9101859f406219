// A client of the published envelope protocol in JavaScript, with WebCrypto and fetch alone. It keeps to the behaviour
// that the published JavaScript client documents: error classes by status, and retries with back-off.
//
// Jobs and results as in nomyo_driver.py: one JSON job on stdin, one JSON array of results on stdout.

const { subtle } = globalThis.crypto;
const OAEP = { name: "RSA-OAEP", hash: "SHA-256" };
const RETRIED = new Set([429, 500, 502, 503, 504]);
const CLASSES = {
  400: "InvalidRequestError", 401: "AuthenticationError", 403: "ForbiddenError",
  429: "RateLimitError", 500: "ServerError", 503: "ServiceUnavailableError",
};

const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));

class APIError extends Error {
  constructor(status, detail) {
    super(detail);
    this.name = CLASSES[status] ?? "APIError";
    this.statusCode = status;
  }
}

function toPem(der) {
  return `-----BEGIN PUBLIC KEY-----\n${base64(der).match(/.{1,64}/g).join("\n")}\n-----END PUBLIC KEY-----\n`;
}

function fromPem(pem) {
  return bytes(pem.replace(/-----[A-Z ]+-----|\s/g, ""));
}

async function sealed(payload, serverPem) {
  const serverKey = await subtle.importKey("spki", fromPem(serverPem), OAEP, false, ["encrypt"]);
  const key = await subtle.generateKey({ name: "AES-GCM", length: 256 }, true, ["encrypt"]);
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  const text = new TextEncoder().encode(JSON.stringify(payload));
  const both = new Uint8Array(await subtle.encrypt({ name: "AES-GCM", iv: nonce }, key, text));
  const wrapped = await subtle.encrypt(OAEP, serverKey, await subtle.exportKey("raw", key));
  return JSON.stringify({
    version: "1.0",
    algorithm: "hybrid-aes256-rsa4096",
    encrypted_payload: {
      ciphertext: base64(both.subarray(0, -16)), nonce: base64(nonce), tag: base64(both.subarray(-16)),
    },
    encrypted_aes_key: base64(wrapped),
    key_algorithm: "RSA-OAEP-SHA256",
    payload_algorithm: "AES-256-GCM",
  });
}

async function opened(text, privateKey, payloadId) {
  const box = JSON.parse(text);
  if (box.version !== "1.0" || box.algorithm !== "hybrid-aes256-rsa4096") throw new Error("unknown package");
  const raw = await subtle.decrypt(OAEP, privateKey, bytes(box.encrypted_aes_key));
  const key = await subtle.importKey("raw", raw, "AES-GCM", false, ["decrypt"]);
  const { ciphertext, nonce, tag } = box.encrypted_payload;
  const both = Buffer.concat([bytes(ciphertext), bytes(tag)]);
  const response = JSON.parse(new TextDecoder().decode(
    await subtle.decrypt({ name: "AES-GCM", iv: bytes(nonce) }, key, both)));
  response._metadata = {
    ...response._metadata,
    payload_id: payloadId, processed_at: box.processed_at, is_encrypted: true, encryption_algorithm: box.algorithm,
  };
  return response;
}

async function create(job, pair, request) {
  const { security_tier: tier, api_key: apiKey = job.api_key, ...payload } = request;
  const server = await fetch(`${job.base_url}/pki/public_key`);
  if (server.status !== 200) throw new Error(`public key: HTTP ${server.status}`);
  const payloadId = crypto.randomUUID();
  const body = await sealed(payload, await server.text());
  const headers = {
    "Content-Type": "application/octet-stream",
    "X-Payload-ID": payloadId,
    "X-Public-Key": encodeURIComponent(toPem(await subtle.exportKey("spki", pair.publicKey))),
    ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}),
    ...(tier ? { "X-Security-Tier": tier } : {}),
  };
  for (let attempt = 0; ; attempt++) {
    const answer = await fetch(`${job.base_url}/v1/chat/secure_completion`, { method: "POST", headers, body });
    const text = await answer.text();
    if (answer.status === 200) return opened(text, pair.privateKey, payloadId);
    if (!RETRIED.has(answer.status) || attempt >= (job.max_retries ?? 0)) {
      let detail = "unknown";
      try { detail = JSON.parse(text).detail ?? detail; } catch { /* not JSON: the status says enough */ }
      throw new APIError(answer.status, detail);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** attempt));
  }
}

let input = "";
for await (const chunk of process.stdin) input += chunk;
const job = JSON.parse(input);
const pair = await subtle.generateKey(
  { ...OAEP, modulusLength: job.key_bits ?? 4096, publicExponent: new Uint8Array([1, 0, 1]) }, true, ["encrypt", "decrypt"]);
const results = [];
for (const request of job.requests) {
  try {
    results.push({ ok: true, response: await create(job, pair, request) });
  } catch (error) {
    results.push({ ok: false, error: error.name, status: error.statusCode ?? null, message: error.message });
  }
}
process.stdout.write(JSON.stringify(results));
