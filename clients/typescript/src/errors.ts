/**
 * The one error of this package, and the only place that reads a status.
 *
 * @module
 */
import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "./google/rpc/error_details_pb.js";
import { ErrorReason } from "./v1/error_reason_pb.js";

const DOMAIN = "inferwire.dev";

/** A field of the request that the server refuses, and why. */
export interface Violation {
  readonly field: string;
  readonly description: string;
}

/** What an {@link InferwireError} may say beside its code and message. */
export interface ErrorDetails {
  readonly reason?: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly retryDelayMs?: number | undefined;
  readonly violations?: readonly Violation[];
  readonly resource?: string;
  readonly headers?: Headers | undefined;
  readonly cause?: unknown;
}

/** A call failed. `code` is for who retries, `reason` for who branches, `message` for people. */
export class InferwireError extends Error {
  override readonly name = "InferwireError";
  readonly code: Code;
  /**
   * The name of an ErrorReason, such as "QUEUE_FULL", also one that this version does not know; empty when the failure
   * is not the service's own: no server there, a proxy's answer, the transport.
   */
  readonly reason: string;
  /** What the reason documents, such as `{ model: "demo", queueCapacity: "64" }`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which the server wants to be asked again; undefined: it does not say. */
  readonly retryDelayMs: number | undefined;
  readonly violations: readonly Violation[];
  /** The name of the thing that was not found, such as a model's; empty when the server names none. */
  readonly resource: string;
  readonly #headers: Headers | undefined;

  constructor(code: Code, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.reason = details.reason ?? "";
    this.metadata = details.metadata ?? {};
    this.retryDelayMs = details.retryDelayMs;
    this.violations = details.violations ?? [];
    this.resource = details.resource ?? "";
    this.#headers = details.headers;
  }

  /**
   * Returns the failure of a call. Details that are absent, foreign or garbage leave only code and message.
   * An InferwireError is returned as it is.
   */
  static from(failure: unknown): InferwireError {
    if (failure instanceof InferwireError) {
      return failure;
    }
    const error = ConnectError.from(failure);
    if (isAnswer(error)) {
      const code = error.code in Code ? error.code : Code.Unknown;
      return new InferwireError(code, error.rawMessage, { ...readDetails(error), headers: error.metadata });
    }
    // A call that its own caller ended does not come here, so Canceled is a connection that was closed.
    const isClosed = error.code === Code.Canceled;
    const message = isClosed ? "the connection to the server was closed" : error.rawMessage;
    const code = isClosed || isBroken(error) ? Code.Unavailable : error.code;
    return new InferwireError(code, message, { cause: error });
  }

  /** The headers and trailers of the failure; undefined when no server sent it. */
  get headers(): Headers | undefined {
    return this.#headers;
  }

  /** The code's name in gRPC, such as "DEADLINE_EXCEEDED". */
  get codeName(): string {
    // Connect writes one code with one l less than gRPC does.
    return this.code === Code.Canceled ? "CANCELLED" : Code[this.code].replace(/\B[A-Z]/g, "_$&").toUpperCase();
  }

  /** The reason as the contract's enum; undefined when there is none or this version does not know it. */
  get knownReason(): ErrorReason | undefined {
    const value: unknown = (ErrorReason as Record<string, unknown>)[this.reason];
    // The enum also maps numbers to names, and 0 is never sent.
    return typeof value === "number" && value !== 0 ? value : undefined;
  }

  override toString(): string {
    const fields = this.violations.map(({ field, description }) => `; ${field}: ${description}`);
    return `${this.reason || this.codeName}: ${this.message}${fields.join("")}`;
  }
}

/** Returns the failure of a stream that ended with OK but without its last event. */
export function streamTruncated(): InferwireError {
  return new InferwireError(Code.Aborted, "the stream ended without its last event; the answer may be cut short", {
    reason: "STREAM_TRUNCATED",
  });
}

/** Returns the failure of a call that its own caller cancelled; as gRPC tells it, without a reason. */
export function cancelled(cause?: unknown): InferwireError {
  return new InferwireError(Code.Canceled, "the caller cancelled the call", { cause });
}

/** Returns the failure of a call whose own deadline passed; as gRPC tells it, without a reason. */
export function deadlineExceeded(): InferwireError {
  return new InferwireError(Code.DeadlineExceeded, "the call's deadline passed");
}

/** Returns whether a server sent this failure, rather than this side or the way between them. */
function isAnswer(error: ConnectError): boolean {
  return !error.metadata.keys().next().done;
}

// What Node calls the failures of a socket, of TLS and of an HTTP/2 connection as a whole.
const CONNECTION_FAILURES = [
  /^E(?!RR_)/,
  /^ERR_(SSL|TLS|SOCKET|STREAM)_/,
  /^ERR_HTTP2_(ERROR|SESSION_ERROR|GOAWAY_SESSION|INVALID_SESSION|INVALID_STREAM|STREAM_CANCEL|PING_CANCEL)$/,
  /^(CERT|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO)_/,
];

/**
 * Returns whether a failure that no server sent is that of a connection. gRPC calls them all UNAVAILABLE; Connect calls
 * some of them Aborted or Internal.
 */
function isBroken(error: ConnectError): boolean {
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) {
    const name = "code" in cause ? String(cause.code) : "";
    if (name === "ERR_HTTP2_STREAM_ERROR") {
      return cause.message.includes("REFUSED_STREAM");
    }
    if (CONNECTION_FAILURES.some((pattern) => pattern.test(name))) {
      return true;
    }
  }
  return false;
}

function readDetails(error: ConnectError): ErrorDetails {
  try {
    const info = detail(error, ErrorInfoSchema);
    const retryDelay = detail(error, RetryInfoSchema)?.retryDelay;
    const known = info?.domain === DOMAIN ? { reason: info.reason, metadata: info.metadata } : {};
    return {
      ...known,
      retryDelayMs: retryDelay && durationMs(retryDelay),
      violations: (detail(error, BadRequestSchema)?.fieldViolations ?? []).map(({ field, description }) => ({
        field,
        description,
      })),
      resource: detail(error, ResourceInfoSchema)?.resourceName ?? "",
    };
  } catch {
    return {};
  }
}

/** Returns the last detail of this type. Throws when it is garbage. */
function detail<D extends DescMessage>(error: ConnectError, schema: D): MessageShape<D> | undefined {
  const sent = error.details.findLast((sent) => "type" in sent && sent.type === schema.typeName);
  return sent && "type" in sent ? fromBinary(schema, sent.value) : undefined;
}
