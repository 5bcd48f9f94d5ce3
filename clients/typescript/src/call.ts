/**
 * What surrounds one call: its deadline, what ends it early, and when it is sent again. Decides; sends nothing.
 *
 * @module
 */
import { Code, ConnectError } from "@connectrpc/connect";

import { cancelled, deadlineExceeded, InferwireError } from "./errors.js";

// More fits neither a timer of JavaScript nor, in milliseconds, the header "grpc-timeout".
const MAX_TIMER_MS = 0x7fffffff;
const MAX_SENT_TIMEOUT_MS = 99_999_999;

/** One call's life. Whatever ends it early aborts `signal`, and its caller gets the InferwireError that says why. */
export class Call {
  readonly #controller = new AbortController();
  readonly #callersSignal: AbortSignal | undefined;
  #deadline = Infinity;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ended: InferwireError | undefined;

  constructor(callersSignal: AbortSignal | undefined) {
    this.#callersSignal = callersSignal;
  }

  /** What a Transport listens to. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What is left until the deadline, as a Transport takes it: whole milliseconds, 0 for no deadline. */
  get timeoutMs(): number {
    const left = Math.ceil(this.#deadline - performance.now());
    return left > MAX_SENT_TIMEOUT_MS ? 0 : Math.max(1, left);
  }

  /** Starts the clock; `timeoutMs` may be Infinity. Throws when the call is over before it begins. */
  begin(timeoutMs: number): void {
    this.#deadline = performance.now() + timeoutMs;
    if (this.#callersSignal?.aborted) {
      this.#onCallersAbort();
    } else if (timeoutMs <= 0) {
      this.abort(deadlineExceeded());
    }
    if (this.#ended) {
      throw this.#ended;
    }
    this.#callersSignal?.addEventListener("abort", this.#onCallersAbort);
    if (timeoutMs <= MAX_TIMER_MS) {
      this.#timer = setTimeout(() => this.abort(deadlineExceeded()), timeoutMs);
    }
  }

  /** Ends the call; the first reason counts. */
  abort(reason: InferwireError): void {
    this.#ended ??= reason;
    clearTimeout(this.#timer);
    this.#callersSignal?.removeEventListener("abort", this.#onCallersAbort);
    // Only for this very error does Connect tell the server that the call is cancelled, rather than broken.
    this.#controller.abort(new ConnectError(reason.message, Code.Canceled));
  }

  /** Returns what the caller is told when `failure` was thrown. */
  failure(failure: unknown): InferwireError {
    return this.#ended ?? InferwireError.from(failure);
  }

  /** Waits, and throws when the call is ended meanwhile. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        clearTimeout(timer);
        reject(this.failure(undefined));
      };
      const timer = setTimeout(() => {
        this.signal.removeEventListener("abort", onAbort);
        resolve();
      }, ms);
      this.signal.addEventListener("abort", onAbort);
    });
  }

  readonly #onCallersAbort = (): void => this.abort(cancelled(this.#callersSignal?.reason));
}

const MAX_ATTEMPTS = 3;
const INITIAL_BACKOFF_MS = 200;
const MAX_BACKOFF_MS = 2000;
const BACKOFF_MULTIPLIER = 2;
const JITTER = 0.2;
const MAX_TOKENS = 10;
const TOKEN_RATIO = 0.1;

/**
 * gRPC's retry policy and its throttling, which Connect does not have; see gRFC A6. All calls of a client share one.
 *
 * A call may be repeated only while nothing of its answer has come; whoever asks sees to that.
 */
export class Retries {
  #tokens = MAX_TOKENS;

  /**
   * Returns how many milliseconds to wait before a failed call is sent again, or undefined when it must not be.
   *
   * @param failures - what the call has met so far, oldest first.
   */
  delay(failures: readonly InferwireError[]): number | undefined {
    const last = failures.at(-1);
    if (!last) {
      return undefined;
    }
    const pushback = pushbackOf(last);
    const isRetryable = isFit(last) && pushback !== "never";
    if (isRetryable || pushback === "never") {
      this.#tokens = Math.max(0, this.#tokens - 1);
    }
    if (!isRetryable || this.#tokens <= MAX_TOKENS / 2 || failures.length >= MAX_ATTEMPTS) {
      return undefined;
    }
    if (pushback !== undefined) {
      return pushback;
    }
    const sincePushback = failures.length - 1 - failures.findLastIndex((failure) => pushbackOf(failure) !== undefined);
    const backoff = Math.min(INITIAL_BACKOFF_MS * BACKOFF_MULTIPLIER ** (sincePushback - 1), MAX_BACKOFF_MS);
    return backoff * (1 + JITTER * (2 * Math.random() - 1));
  }

  /** Takes a call that ended with OK. */
  succeeded(): void {
    this.#tokens = Math.min(MAX_TOKENS, this.#tokens + TOKEN_RATIO);
  }

  toString(): string {
    return `<Retries [tokens ${this.#tokens.toFixed(1)}/${MAX_TOKENS}]>`;
  }
}

/** Returns whether a failure is one that may be over the next time. */
function isFit(error: InferwireError): boolean {
  // RESOURCE_EXHAUSTED of this side is a message that is too large, and it will be so the next time.
  return error.code === Code.Unavailable || (error.code === Code.ResourceExhausted && error.headers !== undefined);
}

/** Returns the server's own word on when to send again, in milliseconds; undefined: it says nothing. */
function pushbackOf(error: InferwireError): number | "never" | undefined {
  const value = error.headers?.get("grpc-retry-pushback-ms") ?? undefined;
  if (value === undefined) {
    return undefined;
  }
  return /^\d+$/.test(value) ? Number(value) : "never";
}
