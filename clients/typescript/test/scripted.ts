/** A real server on a real port that answers as a test's script says, and remembers what it was asked. */
import { once } from "node:events";
import * as http2 from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { buffer } from "node:stream/consumers";

import { create, fromBinary, toBinary, type DescMethod, type Message, type MessageInitShape } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { encodeBinaryHeader } from "@connectrpc/connect";
import { Code, type Violation } from "inferwire";
import {
  FinishReason,
  InferenceService,
  StreamCompleteResponseSchema,
  type StreamCompleteResponse,
} from "inferwire/v1/inference_pb";
import { ModelService } from "inferwire/v1/models_pb";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from "../src/google/rpc/error_details_pb.js";

export type Event = StreamCompleteResponse;

/** Field 127 is in no version of the contract: what an older client sees of a newer server's event. */
export const UNKNOWN_EVENT = fromBinary(StreamCompleteResponseSchema, Buffer.from("\xfa\x07\x03new", "latin1"));

export function event(event: MessageInitShape<typeof StreamCompleteResponseSchema>["event"]): Event {
  return create(StreamCompleteResponseSchema, event && { event });
}

export function started(): Event {
  return event({ case: "started", value: { id: "r1", model: "demo" } });
}

export function text(text: string): Event {
  return event({ case: "text", value: { text } });
}

export function reasoning(text: string, signature = ""): Event {
  return event({ case: "reasoning", value: { text, signature: new TextEncoder().encode(signature) } });
}

export function completion(finishReason = FinishReason.STOP): Event {
  return event({ case: "completion", value: { finishReason } });
}

/** Returns a whole lawful stream. */
export function answer(...pieces: string[]): Event[] {
  return [started(), ...pieces.map(text), completion()];
}

/** A failure as the contract tells it. */
export class Refusal {
  readonly trailers: Record<string, string>;

  constructor(
    code: Code,
    message = "",
    details: {
      reason?: string;
      domain?: string;
      metadata?: Record<string, string>;
      retryDelayMs?: number;
      violations?: Violation[];
      resource?: string;
      trailers?: Record<string, string>;
    } = {},
  ) {
    const { reason, domain = "inferwire.dev", metadata = {}, retryDelayMs, violations, resource, trailers } = details;
    const packed = [
      ...(reason ? [anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason, domain, metadata }))] : []),
      ...(retryDelayMs === undefined
        ? []
        : [anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay: durationFromMs(retryDelayMs) }))]),
      ...(violations ? [anyPack(BadRequestSchema, create(BadRequestSchema, { fieldViolations: violations }))] : []),
      ...(resource ? [anyPack(ResourceInfoSchema, create(ResourceInfoSchema, { resourceName: resource }))] : []),
    ];
    this.trailers = {
      "grpc-status": String(code),
      "grpc-message": encodeURIComponent(message),
      ...(packed.length > 0 && {
        "grpc-status-details-bin": encodeBinaryHeader(
          create(StatusSchema, { code, message, details: packed }),
          StatusSchema,
        ),
      }),
      ...(retryDelayMs !== undefined && { "grpc-retry-pushback-ms": String(retryDelayMs) }),
      ...trailers,
    };
  }
}

/** A step of a script: nothing more comes until the caller is gone; `gone` then tells the code of HTTP/2 that it left by. */
export class Hang {
  #tell!: (rstCode: number) => void;
  readonly gone = new Promise<number>((resolve) => (this.#tell = resolve));

  watch(stream: http2.ServerHttp2Stream): void {
    if (stream.closed) {
      this.#tell(stream.rstCode);
    } else {
      stream.once("close", () => this.#tell(stream.rstCode));
    }
  }
}

/** A step of a script: all connections break before the answer. */
export class Break {}

type Step = Message | Refusal | Hang | Break;

/** What one call brought. */
export interface Asked {
  readonly method: string;
  readonly message: Message;
  readonly headers: http2.IncomingHttpHeaders;
}

export type Secure = Pick<http2.SecureServerOptions, "key" | "cert" | "ca" | "requestCert" | "rejectUnauthorized">;

/** Answers one call after another from its scripts; an RPC's last script answers all further calls of it. */
export class ScriptedServer {
  readonly asked: Asked[] = [];
  readonly #scripts = new Map<string, Step[][]>();
  readonly #server: http2.Http2Server;
  readonly #sockets = new Set<Socket>();

  private constructor(secure: Secure | undefined) {
    this.#server = secure ? http2.createSecureServer(secure) : http2.createServer();
    this.#server.on(secure ? "secureConnection" : "connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
    this.#server.on("session", (session) => session.on("ping", () => this.#server.emit("ping")));
    this.#server.on("stream", (stream, headers) => {
      // A caller that goes away makes writing fail, which is its right.
      stream.on("error", () => undefined);
      void this.#answer(stream, headers);
    });
    // A client that does not trust this server hangs up.
    this.#server.on("sessionError", () => undefined);
  }

  static async start(secure?: Secure): Promise<ScriptedServer> {
    const server = new ScriptedServer(secure);
    server.#server.listen(0, "127.0.0.1");
    await once(server.#server, "listening");
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** How many connections there are. */
  get numConnections(): number {
    return this.#sockets.size;
  }

  /** Resolves at the next ping of a client. */
  get pinged(): Promise<unknown> {
    return once(this.#server, "ping");
  }

  /** Says what an RPC answers, by its name: call by call, step by step. */
  script(method: string, ...scripts: Step[][]): void {
    this.#scripts.set(method, scripts);
  }

  async stop(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.hangUp();
    await closed;
  }

  /** Breaks all connections. */
  hangUp(): void {
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }

  async #answer(stream: http2.ServerHttp2Stream, headers: http2.IncomingHttpHeaders): Promise<void> {
    const [, service, name] = String(headers[":path"]).split("/");
    const methods: readonly DescMethod[] =
      [InferenceService, ModelService].find((s) => s.typeName === service)?.methods ?? [];
    const method = methods.find((method) => method.name === name);
    if (!method) {
      throw new Error(`there is no RPC ${headers[":path"]}`);
    }
    const body = await buffer(stream);
    this.asked.push({ method: method.name, message: fromBinary(method.input, body.subarray(5)), headers });

    const scripts = this.#scripts.get(method.name) ?? [[create(method.output)]];
    const script = (scripts.length > 1 ? scripts.shift() : scripts[0]) ?? [];
    const respond = (): void => {
      if (!stream.headersSent) {
        stream.respond({ "content-type": "application/grpc" }, { waitForTrailers: true });
      }
    };
    let trailers: Record<string, string> = { "grpc-status": "0" };
    stream.on("wantTrailers", () => stream.sendTrailers(trailers));
    for (const step of script) {
      if (step instanceof Refusal) {
        if (!stream.headersSent) {
          stream.respond({ "content-type": "application/grpc", ...step.trailers }, { endStream: true });
          return;
        }
        ({ trailers } = step);
        break;
      } else if (step instanceof Hang) {
        respond();
        step.watch(stream);
        return;
      } else if (step instanceof Break) {
        this.hangUp();
        return;
      }
      respond();
      const data = toBinary(method.output, step);
      const frame = Buffer.alloc(5);
      frame.writeUInt32BE(data.length, 1);
      stream.write(Buffer.concat([frame, data]));
    }
    respond();
    stream.end();
  }
}
