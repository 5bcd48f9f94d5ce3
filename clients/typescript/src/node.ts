/**
 * The way to a server from Node: gRPC over HTTP/2, in plain text or with TLS.
 *
 * @module
 */
import type { IncomingHttpHeaders } from "node:http";
import type { ClientHttp2Stream, Http2Session, SecureClientSessionOptions } from "node:http2";
import * as net from "node:net";

import { decodeBinaryHeader, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { Client, MAX_MESSAGE_BYTES, type ClientOptions } from "./client.js";
import { StatusSchema } from "./google/rpc/error_details_pb.js";

export * from "./index.js";

/** How to reach a server. */
export interface ConnectOptions extends ClientOptions {
  /**
   * True: TLS with the certificates that Node trusts; false: plain text. Unset: plain text to this machine, TLS to any
   * other.
   */
  tls?: boolean | TlsOptions | undefined;
  /** Interceptors of Connect, such as for traces. They see every attempt of a call. */
  interceptors?: Interceptor[] | undefined;
}

/** Certificates, as PEM text or bytes. */
export interface TlsOptions {
  /** Whom to trust. Unset: those that Node trusts. */
  ca?: string | Uint8Array | undefined;
  /** This client's certificate, for servers that ask for one; with its `key`. */
  cert?: string | Uint8Array | undefined;
  /** The key of `cert`. */
  key?: string | Uint8Array | undefined;
  /** The name that the server's certificate must have. Unset: the target's. */
  serverName?: string | undefined;
}

/**
 * Returns a client of the server at `target`. It connects at the first call, and again after a loss.
 *
 * @param target - as gRPC names it, such as "127.0.0.1:50051", "dns:///inferwire.example:443" or "unix:/run/i.sock".
 * @throws TypeError when the target is none of these.
 */
export function connect(target = "127.0.0.1:50051", options: ConnectOptions = {}): Client {
  return new GrpcClient(target, options);
}

class GrpcClient extends Client {
  readonly #label: string;
  readonly #sessions: Sessions;

  constructor(target: string, options: ConnectOptions) {
    const place = placeOf(target);
    const tls = options.tls ?? place.tls ?? !place.isLocal;
    if (tls && place.socket !== undefined) {
      throw new TypeError("a Unix socket is called in plain text");
    }
    const { socket } = place;
    const baseUrl = `${tls ? "https" : "http"}://${place.authority}`;
    const sessions = new Sessions(
      baseUrl,
      // A long prompt is silent for a while: the pings keep the connection known to what lies between, and find it dead.
      { pingIntervalMs: 30_000, pingTimeoutMs: 10_000, pingIdleConnection: true },
      {
        ...(typeof tls === "object" && certificatesOf(tls)),
        ...(socket !== undefined && { createConnection: () => net.connect(socket) }),
      },
    );
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: sessions,
      readMaxBytes: MAX_MESSAGE_BYTES,
      writeMaxBytes: MAX_MESSAGE_BYTES,
      interceptors: options.interceptors ?? [],
    });
    super(transport, options);
    this.#label = `${target} | ${tls ? "TLS" : "plain text"} | ${options.token === undefined ? "no token" : "token"}`;
    this.#sessions = sessions;
  }

  /** Cancels the calls that still run and closes the connection. */
  override close(): void {
    super.close();
    this.#sessions.abort();
  }

  override toString(): string {
    return `<Client [${this.#label}]>`;
  }
}

function certificatesOf({ ca, cert, key, serverName }: TlsOptions): SecureClientSessionOptions {
  return {
    ...(ca !== undefined && { ca: Buffer.from(ca) }),
    ...(cert !== undefined && { cert: Buffer.from(cert) }),
    ...(key !== undefined && { key: Buffer.from(key) }),
    ...(serverName !== undefined && { servername: serverName }),
  };
}

/** The connection of connect-node 2.1.2, with two of its traits mended. */
class Sessions extends Http2SessionManager {
  override async request(...request: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...request);
    if (stream.session) {
      mendPing(stream.session);
    }
    // Before the listeners of Connect, which get the same object.
    stream.prependListener("response", mendStatus);
    stream.prependListener("trailers", mendStatus);
    return stream;
  }
}

/**
 * Lets a ping of a connection that is gone fail by its callback. Connect starts the timer of the next ping when the last
 * stream is closed, even if that was because the connection broke; Node would throw then, and end the process.
 */
function mendPing(session: Http2Session): void {
  if (Object.hasOwn(session, "ping")) {
    return;
  }
  const ping = session.ping.bind(session) as (...call: unknown[]) => boolean;
  session.ping = (...call: unknown[]): boolean => {
    if (!session.destroyed) {
      return ping(...call);
    }
    const callback = call.at(-1) as (error: Error, duration: number, payload: Buffer) => void;
    callback(new Error("the connection is closed"), 0, Buffer.alloc(0));
    return false;
  };
}

/** Takes out details that are garbage or of another failure, and escapes a message that cannot be unescaped. */
function mendStatus(headers: IncomingHttpHeaders): void {
  const details = headers["grpc-status-details-bin"];
  if (details !== undefined && codeOf(String(details)) !== Number(headers["grpc-status"])) {
    delete headers["grpc-status-details-bin"];
  }
  const message = headers["grpc-message"];
  try {
    decodeURIComponent(String(message));
  } catch {
    headers["grpc-message"] = encodeURIComponent(String(message));
  }
}

function codeOf(details: string): number | undefined {
  try {
    return decodeBinaryHeader(details, StatusSchema).code;
  } catch {
    return undefined;
  }
}

/** Where a target is. */
interface Place {
  /** Host and port as a URL has them. */
  readonly authority: string;
  /** Whether it is this machine by its very name: a Unix socket, localhost, a loopback address. */
  readonly isLocal: boolean;
  /** Whether the target itself says TLS. */
  readonly tls?: boolean;
  /** The path of a Unix socket. */
  readonly socket?: string;
}

function placeOf(target: string): Place {
  const socket = /^unix:(?:\/\/)?(?<path>.+)$/.exec(target)?.groups?.["path"];
  if (socket !== undefined) {
    return { authority: "localhost", isLocal: true, socket };
  }
  const [, scheme = "", address = ""] = /^(https?:\/\/|dns:\/\/\/|dns:|ipv4:|ipv6:)?(.*?)\/?$/.exec(target) ?? [];
  const [, bracketed, name, port] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(address) ?? [];
  const host = bracketed ?? name ?? address;
  if (!/^[\w.:%-]+$/.test(host) || (host.includes(":") && !net.isIPv6(host))) {
    throw new TypeError(`"${target}" is no target such as "127.0.0.1:50051", "dns:///host:443" or "unix:/path"`);
  }
  const url = net.isIPv6(host) ? `[${host}]` : host;
  return {
    authority: scheme.startsWith("http") && port === undefined ? url : `${url}:${port ?? 443}`,
    isLocal: isLoopback(host),
    ...(scheme.startsWith("http") && { tls: scheme.startsWith("https") }),
  };
}

function isLoopback(host: string): boolean {
  if (net.isIPv6(host)) {
    return new URL(`http://[${host}]`).hostname === "[::1]";
  }
  return host === "localhost" || (net.isIPv4(host) && host.startsWith("127."));
}
