/**
 * PerishableClient: chat from a web page through the gateway, with a short-lived session instead of an API key.
 *
 *   import { PerishableClient } from "https://gateway.example/session/client.js";
 *   const client = new PerishableClient({ proxyUrl: "https://gateway.example" });
 *   const response = await client.makeRequest("/openai/chat/completions", { method: "POST", body: … });
 *
 * One file, no dependency. Nothing in it is secret, and nothing that it holds is worth more than the session: what a
 * page may use and spend is decided by the gateway.
 */

const DEFAULTS = {
  abusePreventionOptions: { maxRetries: 3, retryDelay: 1000, requestTimeout: 30000, requireUserInteraction: true },
  sessionOptions: { expiryBuffer: 5 * 60 * 1000, enableRequestSigning: true, persist: true },
};
const LONGEST_WAIT = 10_000; // ms: what asks for a longer wait is the page's to decide
const SAMPLES = 24; // of mouse and keys, at most
const TEXT = new TextEncoder();
const FORMS = [ArrayBuffer, Blob, ReadableStream, FormData, URLSearchParams]; // of a body, besides text and views

/** An answer of the gateway that is no success. `status` is HTTP's; `type` and `requestId` are the gateway's words. */
export class PerishableError extends Error {
  constructor(message, { status = 0, type = "", requestId = "", retryAfter = null } = {}) {
    super(message);
    this.name = "PerishableError";
    Object.assign(this, { status, type, requestId, retryAfter });
  }

  /** From a response whose body has not been read yet. */
  static async from(response) {
    const body = await response.json().catch(() => ({}));
    const error = typeof body.error === "object" && body.error !== null ? body.error : { message: body.error };
    return new PerishableError(error.message || `the gateway answered with status ${response.status}`, {
      status: response.status,
      type: error.type ?? "",
      requestId: body.request_id ?? response.headers.get("x-request-id") ?? "",
      retryAfter: seconds(response),
    });
  }
}

export class PerishableClient {
  #base;
  #options;
  #apiKey;
  #publishableKey;
  #session = null;
  #creating = null;
  #fingerprint = null;
  #samples = [];

  constructor(options) {
    if (!options?.proxyUrl) throw new TypeError("PerishableClient needs the gateway's address: { proxyUrl }");
    this.#base = new URL(options.proxyUrl, globalThis.location?.href);
    this.#options = {
      ...DEFAULTS.abusePreventionOptions,
      ...options.abusePreventionOptions,
      ...DEFAULTS.sessionOptions,
      ...options.sessionOptions,
    };
    this.#apiKey = options.apiKey;
    this.#publishableKey = options.publishableKey;
    if (options.securityOptions?.jwtSecret) {
      console.warn("PerishableClient: jwtSecret is not used. Take it out of this page: whoever reads it owns it.");
    }
    if (this.#options.requireUserInteraction) this.#watchTheUser();
  }

  /** What is known of the current session: { sessionId, expiresAt, fingerprint }; null without one. */
  get session() {
    const current = this.#current();
    return current && { sessionId: current.sessionId, expiresAt: current.expiresAt, fingerprint: current.fingerprint };
  }

  /** The token of a session: of the one there is, or of a new one. */
  async createSession() {
    return (await this.#ready()).token;
  }

  /** Forget the session. The gateway lets it run out by itself. */
  forgetSession() {
    this.#session = null;
    storage("sessionStorage")?.removeItem(this.#place);
  }

  /**
   * Ask for something. The response is fetch's own; its body is not read here. What may come right is tried again, with
   * exponential back-off; a time-out (AbortError) is not, because an answer may already have been paid for.
   */
  async makeRequest(endpoint, options = {}) {
    if (this.#apiKey) throw new Error("an apiKey is for direct access: this client makes requests through the gateway");
    const url = new URL(endpoint, this.#base);
    if (url.origin !== this.#base.origin) throw new TypeError("the endpoint is not the gateway's");
    const { maxRetries, retryDelay } = this.#options;
    const given = await jsonOf(options.body); // once: some bodies can be read only once, and a wrong one stays wrong
    let renewed = false;
    for (let attempt = 0; ; attempt += 1) {
      let response;
      try {
        response = await this.#send(url, options, given);
      } catch (error) {
        if (options.signal?.aborted || error.name === "AbortError" || attempt >= maxRetries) throw error;
        if (error instanceof PerishableError && !worthTrying(error.status, error.type)) throw error;
        const wait = error.retryAfter ?? backOff(retryDelay, attempt);
        if (wait > LONGEST_WAIT) throw error;
        await pause(wait, options.signal);
        continue;
      }
      if (response.ok) return response;
      if (response.status === 401 && !renewed) {
        renewed = true; // expired, revoked, or the gateway's keys are new: once, with a new session
        this.forgetSession();
        attempt -= 1;
        continue;
      }
      const kind = await typeOf(response);
      const wait = seconds(response) ?? backOff(retryDelay, attempt);
      if (attempt >= maxRetries || !worthTrying(response.status, kind) || wait > LONGEST_WAIT) return response;
      await response.body?.cancel();
      await pause(wait, options.signal);
    }
  }

  /**
   * Ask for something that streams: a ReadableStream of server-sent events, each { event, data, id } with `data` as
   * text. It ends at [DONE]. Cancelling it ends the request. Errors are PerishableErrors.
   */
  async stream(endpoint, options = {}) {
    const stop = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal;
    const response = await this.makeRequest(endpoint, { ...options, signal });
    if (!response.ok) throw await PerishableError.from(response);
    return events(response, stop);
  }

  async #send(url, options, given) {
    const session = await this.#ready();
    const method = (options.method ?? (options.body == null ? "GET" : "POST")).toUpperCase();
    const headers = new Headers(options.headers);
    headers.set("authorization", `Bearer ${session.token}`);
    let body;
    if (method === "GET" || method === "HEAD") {
      headers.set("x-fingerprint", session.fingerprint);
    } else {
      headers.set("content-type", "application/json");
      body = TEXT.encode(JSON.stringify({ ...given, fingerprint: session.fingerprint }));
    }
    if (session.signingKey && this.#options.enableRequestSigning) {
      const timestamp = String(Date.now() + session.clockOffset);
      headers.set("x-timestamp", timestamp);
      headers.set("x-request-signature", await signature(session, method, url.pathname, timestamp, body));
    }
    return await this.#fetch(url, { ...options, method, headers, body });
  }

  async #fetch(url, options) {
    const clock = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, clock.signal]) : clock.signal;
    const timer = setTimeout(() => {
      clock.abort(new DOMException(`no answer within ${this.#options.requestTimeout} ms`, "AbortError"));
    }, this.#options.requestTimeout);
    try {
      return await fetch(url, { ...options, signal, credentials: "omit", cache: "no-store", mode: "cors" });
    } finally {
      clearTimeout(timer); // of the wait for an answer: a stream may then take its time
    }
  }

  // The session.

  get #place() {
    return `perishable:${this.#base.origin}`;
  }

  #current() {
    if (this.#session === null && this.#options.persist) {
      try {
        this.#session = JSON.parse(storage("sessionStorage")?.getItem(this.#place) ?? "null");
      } catch {
        this.#session = null; // somebody else wrote there
      }
    }
    // A session shorter than the buffer would otherwise be over before it began.
    const buffer = Math.min(this.#options.expiryBuffer, (this.#session?.lifetime ?? 0) / 6);
    if (this.#session && Date.now() + this.#session.clockOffset + buffer >= this.#session.expiresAt) {
      this.forgetSession();
    }
    return this.#session;
  }

  async #ready() {
    const current = this.#current();
    if (current) return current;
    this.#creating ??= this.#open().finally(() => {
      this.#creating = null;
    });
    return await this.#creating;
  }

  async #open() {
    const fingerprint = this.#clientFingerprint();
    const headers = { "content-type": "application/json" };
    const body = { fingerprint };
    if (this.#publishableKey) body.publishableKey = this.#publishableKey;
    if (this.#options.requireUserInteraction) body.entropyData = { samples: this.#samples };
    const url = new URL("/session", this.#base);
    const response = await this.#fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
    if (!response.ok) throw await PerishableError.from(response);
    const { token, sessionId, expiresAt, signingKey = null, serverTime = Date.now() } = await response.json();
    const clockOffset = serverTime - Date.now();
    const lifetime = expiresAt - serverTime;
    this.#session = { token, sessionId, expiresAt, fingerprint, signingKey, clockOffset, lifetime };
    if (this.#options.persist) remember("sessionStorage", this.#place, JSON.stringify(this.#session));
    return this.#session;
  }

  /** A random number that this browser keeps for this page's origin. It says nothing about the person or the machine. */
  #clientFingerprint() {
    if (this.#fingerprint) return this.#fingerprint;
    const kept = storage("localStorage")?.getItem("perishable:fingerprint");
    this.#fingerprint = /^[0-9a-f]{32}$/.test(kept ?? "") ? kept : hex(crypto.getRandomValues(new Uint8Array(16)));
    remember("localStorage", "perishable:fingerprint", this.#fingerprint);
    return this.#fingerprint;
  }

  #watchTheUser() {
    if (typeof addEventListener !== "function") return;
    const take = (event) => {
      const at = Math.round(event.timeStamp);
      this.#samples.push([event.type, at, Math.round(event.clientX ?? 0), Math.round(event.clientY ?? 0)]);
      if (this.#samples.length > SAMPLES) this.#samples.shift();
    };
    for (const kind of ["pointermove", "pointerdown", "keydown", "scroll"]) {
      addEventListener(kind, take, { passive: true, capture: true });
    }
  }
}

/** The server-sent events of a response (WHATWG HTML, 9.2), as a ReadableStream. */
export function events(response, stop = new AbortController()) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new Parser();
  return new ReadableStream({
    async pull(controller) {
      for (;;) {
        const event = parser.next();
        if (event?.data === "[DONE]") {
          controller.close();
          await reader.cancel();
          return;
        }
        if (event) {
          controller.enqueue(event);
          return;
        }
        const { done, value } = await reader.read();
        if (done) {
          controller.close();
          return;
        }
        parser.feed(value);
      }
    },
    async cancel(reason) {
      stop.abort(reason);
      await reader.cancel(reason).catch(() => {});
    },
  });
}

class Parser {
  #text = "";
  #fields = { event: "message", data: [], id: "" };
  #found = [];

  feed(text) {
    this.#text += text;
    for (;;) {
      const end = /\r\n|\n|\r(?!$)/.exec(this.#text); // a \r at the end may be half of \r\n
      if (!end) return;
      this.#line(this.#text.slice(0, end.index));
      this.#text = this.#text.slice(end.index + end[0].length);
    }
  }

  next() {
    return this.#found.shift();
  }

  #line(line) {
    if (line === "") {
      const { event, data, id } = this.#fields;
      if (data.length) this.#found.push({ event, data: data.join("\n"), id });
      this.#fields = { event: "message", data: [], id };
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#fields.data.push(value);
    else if (name === "event") this.#fields.event = value || "message";
    else if (name === "id") this.#fields.id = value;
  }
}

/** A body as the value it stands for: JSON as text in whatever form fetch takes it, or the value itself. */
async function jsonOf(body) {
  if (body == null) return body;
  const packed = ArrayBuffer.isView(body) || FORMS.some((form) => body instanceof form);
  const text = packed ? await new Response(body).text() : body;
  const value = typeof text === "string" ? JSON.parse(text) : text;
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new TypeError("the body is no JSON object");
  return value;
}

async function signature(session, method, path, timestamp, body) {
  const { subtle } = crypto;
  if (!subtle) throw new PerishableError("signed requests need a secure page: https, or localhost");
  const digest = hex(new Uint8Array(await subtle.digest("SHA-256", body ?? new Uint8Array())));
  const raw = Uint8Array.from(atob(session.signingKey.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const key = await subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const signed = TEXT.encode(`${method}\n${path}\n${timestamp}\n${digest}`);
  return `v1=${hex(new Uint8Array(await subtle.sign("HMAC", key, signed)))}`;
}

/** Whether the same request may pass a little later. A budget that is used up will not come back so soon. */
function worthTrying(status, type) {
  return (status === 429 && type !== "budget_exceeded") || status === 502 || status === 503 || status === 504;
}

/** error.type of the gateway's JSON, without using up the body. */
async function typeOf(response) {
  const body = await response.clone().json().catch(() => ({}));
  return body?.error?.type ?? "";
}

/** Retry-After in ms; null where there is none. */
function seconds(response) {
  const value = response.headers.get("retry-after");
  return value !== null && /^\d+$/.test(value) ? Number(value) * 1000 : null;
}

function backOff(base, attempt) {
  return base * 2 ** attempt * (0.75 + Math.random() / 2);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) reject(signal.reason);
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A browser may forbid storage, and says so by throwing when it is merely looked at. */
function storage(which) {
  try {
    return globalThis[which] ?? null;
  } catch {
    return null;
  }
}

function remember(which, name, value) {
  try {
    storage(which)?.setItem(name, value);
  } catch {
    // full, or forbidden: then it is not remembered
  }
}
