/** Chat from a web page through the gateway, with a short-lived session instead of an API key. */
export interface PerishableClientOptions {
  /** Address of the gateway, such as `https://gateway.example`. */
  proxyUrl: string;
  /** `nzp_…`: names the tenant where the page's origin alone does not. Not a secret. */
  publishableKey?: string;
  /** For direct access only: with it, `makeRequest` throws. Do not put a key into a page. */
  apiKey?: string;
  abusePreventionOptions?: {
    /** Attempts after the first one. Default: 3. */
    maxRetries?: number;
    /** Wait before the first retry, in ms; it doubles each time. Default: 1000. */
    retryDelay?: number;
    /** How long to wait for an answer to begin, in ms. Default: 30000. */
    requestTimeout?: number;
    /** Send a sample of mouse and key events when a session is opened. Default: true. */
    requireUserInteraction?: boolean;
  };
  sessionOptions?: {
    /** Renew the session that many ms before it ends. Default: 300000. */
    expiryBuffer?: number;
    /** Sign requests where the gateway asks for it. Default: true. */
    enableRequestSigning?: boolean;
    /** Keep the session over a reload of the page, in sessionStorage. Default: true. */
    persist?: boolean;
  };
  securityOptions?: {
    /** Not used: tokens are signed by the gateway alone. */
    jwtSecret?: string;
  };
}

export interface SessionData {
  sessionId: string;
  /** Unix ms. */
  expiresAt: number;
  fingerprint: string;
}

export interface RequestOptions extends Omit<RequestInit, "body"> {
  /** A JSON object: as text, in whatever form fetch takes it, or as the value itself. */
  body?: BodyInit | Record<string, unknown> | null;
}

export interface ServerSentEvent {
  event: string;
  data: string;
  id: string;
}

export class PerishableError extends Error {
  constructor(
    message: string,
    told?: { status?: number; type?: string; requestId?: string; retryAfter?: number | null },
  );
  /** HTTP status. */
  readonly status: number;
  /** `rate_limited`, `budget_exceeded`, `unauthorized`, … */
  readonly type: string;
  readonly requestId: string;
  /** When it may be tried again, in ms from now. */
  readonly retryAfter: number | null;
  static from(response: Response): Promise<PerishableError>;
}

export class PerishableClient {
  constructor(options: PerishableClientOptions);
  readonly session: SessionData | null;
  createSession(): Promise<string>;
  forgetSession(): void;
  makeRequest(endpoint: string, options?: RequestOptions): Promise<Response>;
  stream(endpoint: string, options?: RequestOptions): Promise<ReadableStream<ServerSentEvent>>;
}

export function events(response: Response, stop?: AbortController): ReadableStream<ServerSentEvent>;
