/**
 * The way to a server from a browser, or wherever there is `fetch`: the Connect protocol or gRPC-Web.
 *
 * @module
 */
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { Client, type ClientOptions } from "./client.js";

export * from "./index.js";

/** How to reach a server. */
export interface ConnectOptions extends ClientOptions {
  /** What is spoken. Unset: "connect". */
  protocol?: "connect" | "grpc-web" | undefined;
  /** What is called in place of the global `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
  /** Interceptors of Connect, such as for traces. They see every attempt of a call. */
  interceptors?: Interceptor[] | undefined;
}

/**
 * Returns a client of the server at `baseUrl`, such as "https://inferwire.example".
 */
export function connect(baseUrl: string, options: ConnectOptions = {}): Client {
  const create = options.protocol === "grpc-web" ? createGrpcWebTransport : createConnectTransport;
  const transport = create({
    baseUrl,
    // JSON would lose enum values and fields that this version does not know.
    useBinaryFormat: true,
    fetch: telling(options.fetch ?? globalThis.fetch),
    interceptors: options.interceptors ?? [],
  });
  return new Client(transport, options);
}

/** Returns a fetch that tells of a connection that cannot be made or breaks as gRPC does, rather than by a TypeError. */
function telling(fetch: typeof globalThis.fetch): typeof globalThis.fetch {
  return async (resource, init) => {
    const tell = (failure: unknown): unknown =>
      init?.signal?.aborted
        ? failure
        : new ConnectError(String(failure), Code.Unavailable, undefined, undefined, failure);
    try {
      const response = await fetch(resource, init);
      return response.body ? new Response(tellingBody(response.body, tell), response) : response;
    } catch (failure) {
      throw tell(failure);
    }
  };
}

function tellingBody(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  tell: (failure: unknown) => unknown,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const reader = body.getReader();
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) {
          controller.close();
        } else {
          controller.enqueue(value);
        }
      } catch (failure) {
        controller.error(tell(failure));
      }
    },
    cancel: (reason) => reader.cancel(reason),
  });
}
