/**
 * The client: one method per RPC of the contract, over any Transport of Connect.
 *
 * @module
 */
import type {
  DescMessage,
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import type { Transport } from "@connectrpc/connect";
import { createAsyncIterable } from "@connectrpc/connect/protocol";

import { Call, Retries } from "./call.js";
import { cancelled, type InferwireError } from "./errors.js";
import { CompletionStream, lawful, Stream } from "./stream.js";
import {
  InferenceService,
  type ChatSchema,
  type CompleteRequestSchema,
  type CompleteResponse,
  type CountTokensResponse,
  type DetokenizeRequestSchema,
  type DetokenizeResponse,
  type EmbedRequestSchema,
  type EmbedResponse,
  type GetModelRequestSchema,
  type GetModelResponse,
  type HealthResponse,
  type ListBackendsResponse,
  type ListModelsResponse,
  type TokenizeRequestSchema,
  type TokenizeResponse,
  type WatchModelsResponse,
} from "./v1/inference_pb.js";
import {
  ModelService,
  type LoadRequestSchema,
  type LoadResponse,
  type StreamLoadResponse,
  type UnloadRequestSchema,
  type UnloadResponse,
} from "./v1/models_pb.js";

const DEFAULT_TIMEOUT_MS = 300_000;

/** The largest message that is sent or received. */
export const MAX_MESSAGE_BYTES = 32 * 1024 * 1024;

/** How a client calls. */
export interface ClientOptions {
  /** The key that every call carries. */
  token?: string | undefined;
  /**
   * Milliseconds that a call may take when it does not say so itself; Infinity: no deadline. Unset: 300 000. Loads and
   * watches have no deadline of their own.
   */
  defaultTimeoutMs?: number | undefined;
  /** Send a refused call of the inference service again, up to twice, while nothing of its answer has come. Unset: true. */
  retry?: boolean | undefined;
}

/** How one call is made. */
export interface CallOptions {
  /** Milliseconds until DEADLINE_EXCEEDED, repeats included; Infinity: no deadline. Unset: the client's default. */
  timeoutMs?: number | undefined;
  /** Ends the call when it is aborted. */
  signal?: AbortSignal | undefined;
  /** The request's id, which `started` tells back. Unset: the server makes one. */
  requestId?: string | undefined;
  /** More metadata of the call. */
  headers?: HeadersInit | undefined;
}

/** A message's fields, or a whole message. What is unset stays unset, and 0 is said as 0. */
export type Fields<D extends DescMessage> = MessageInitShape<D>;

/** A CompleteRequest; `prompt` or `chat` may stand in it by its own name, instead of in `input`. */
export type CompleteInput =
  | Fields<typeof CompleteRequestSchema>
  | (Omit<Fields<typeof CompleteRequestSchema>, "input" | "$typeName"> &
      (
        | { prompt: string; chat?: undefined; input?: undefined }
        | { chat: Fields<typeof ChatSchema>; prompt?: undefined; input?: undefined }
      ));

/**
 * A connection to a server. It connects at the first call and again after a loss.
 *
 * `connect` of "inferwire/node" or "inferwire/web" makes one. Every method fails with InferwireError.
 */
export class Client {
  readonly #transport: Transport;
  readonly #token: string | undefined;
  readonly #defaultTimeoutMs: number;
  readonly #retries: Retries | undefined;
  readonly #calls = new Set<Call>();
  #isClosed = false;

  /**
   * @param transport - the way to the server. Its own deadline is not used.
   */
  constructor(transport: Transport, options: ClientOptions = {}) {
    this.#transport = transport;
    this.#token = options.token;
    this.#defaultTimeoutMs = options.defaultTimeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#retries = options.retry === false ? undefined : new Retries();
  }

  /** Cancels the calls that still run; later ones are cancelled at once. */
  close(): void {
    this.#isClosed = true;
    for (const call of this.#calls) {
      call.abort(cancelled());
    }
  }

  toString(): string {
    const state = this.#isClosed ? "closed" : `calls ${this.#calls.size}`;
    return `<Client [${this.#token === undefined ? "no token" : "token"} | ${state}]>`;
  }

  /** Returns the whole answer. */
  async complete(request: CompleteInput, options?: CallOptions): Promise<CompleteResponse> {
    return this.call(InferenceService.method.complete, completion(request), options);
  }

  /** Returns the answer as it is made. To leave its `for await` early cancels the generation. */
  stream(request: CompleteInput, options?: CallOptions): CompletionStream {
    const call = new Call(options?.signal);
    const events = this.#read(call, InferenceService.method.streamComplete, completion(request), options);
    return new CompletionStream(lawful(events, "completion"), call);
  }

  /** Returns one vector per text, in order. */
  embed(request: Fields<typeof EmbedRequestSchema>, options?: CallOptions): Promise<EmbedResponse> {
    return this.call(InferenceService.method.embed, request, options);
  }

  /** Returns how many tokens the request would put before the model; nothing is generated. */
  async countTokens(request: CompleteInput, options?: CallOptions): Promise<CountTokensResponse> {
    return this.call(InferenceService.method.countTokens, completion(request), options);
  }

  /** Returns the tokens of a text with the bytes of each. */
  tokenize(request: Fields<typeof TokenizeRequestSchema>, options?: CallOptions): Promise<TokenizeResponse> {
    return this.call(InferenceService.method.tokenize, request, options);
  }

  /** Returns the bytes that the tokens stand for; they need not be valid UTF-8. */
  detokenize(request: Fields<typeof DetokenizeRequestSchema>, options?: CallOptions): Promise<DetokenizeResponse> {
    return this.call(InferenceService.method.detokenize, request, options);
  }

  /** Returns every model in any state, and the default model's name. */
  listModels(options?: CallOptions): Promise<ListModelsResponse> {
    return this.call(InferenceService.method.listModels, {}, options);
  }

  /** Returns one model. */
  getModel(request: Fields<typeof GetModelRequestSchema>, options?: CallOptions): Promise<GetModelResponse> {
    return this.call(InferenceService.method.getModel, request, options);
  }

  /** Returns the list of models now and again after every change; it ends only by failure or by the caller. */
  watchModels(options?: CallOptions): Stream<WatchModelsResponse> {
    return this.watch(InferenceService.method.watchModels, {}, options);
  }

  /** Returns the backends with their capabilities, models and health, ordered by id. */
  listBackends(options?: CallOptions): Promise<ListBackendsResponse> {
    return this.call(InferenceService.method.listBackends, {}, options);
  }

  /** Returns what the server is and how it is. */
  health(options?: CallOptions): Promise<HealthResponse> {
    return this.call(InferenceService.method.health, {}, options);
  }

  /** Loads a model and returns when it is ready. To stop waiting does not stop the load: `unload` does. */
  load(request: Fields<typeof LoadRequestSchema>, options?: CallOptions): Promise<LoadResponse> {
    return this.call(ModelService.method.load, request, withoutDeadline(options));
  }

  /** Returns the way of a load: any number of `progress`, then exactly one `loaded`. As `load` otherwise. */
  streamLoad(request: Fields<typeof LoadRequestSchema>, options?: CallOptions): Stream<StreamLoadResponse> {
    const call = new Call(options?.signal);
    const events = this.#read(call, ModelService.method.streamLoad, request, withoutDeadline(options));
    return new Stream(lawful(events, "loaded"), call);
  }

  /** Unloads a model; running requests may go on for its `drainTimeout` (unset: the server's 30 s). */
  unload(request: Fields<typeof UnloadRequestSchema>, options?: CallOptions): Promise<UnloadResponse> {
    return this.call(ModelService.method.unload, request, options);
  }

  /** Calls an RPC that this class has no method for, such as those of grpc.health.v1. */
  async call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: Fields<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const call = new Call(options.signal);
    const headers = this.#headers(options);
    try {
      this.#begin(call, options);
      const response = await this.#repeat(call, method, () =>
        this.#transport.unary(method, call.signal, call.timeoutMs, headers, request),
      );
      this.#retries?.succeeded();
      return response.message;
    } catch (failure) {
      throw call.failure(failure);
    } finally {
      this.#end(call);
    }
  }

  /** Calls a streaming RPC that this class has no method for. All messages pass, and there is no default deadline. */
  watch<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: Fields<I>,
    options?: CallOptions,
  ): Stream<MessageShape<O>> {
    const call = new Call(options?.signal);
    return new Stream(this.#read(call, method, request, withoutDeadline(options)), call);
  }

  async *#read<I extends DescMessage, O extends DescMessage>(
    call: Call,
    method: DescMethodServerStreaming<I, O>,
    request: Fields<I>,
    options: CallOptions = {},
  ): AsyncGenerator<MessageShape<O>, undefined> {
    const headers = this.#headers(options);
    let messages: AsyncIterator<MessageShape<O>> | undefined;
    try {
      this.#begin(call, options);
      // What is repeated ends with the first message.
      let result = await this.#repeat(call, method, async () => {
        const input = createAsyncIterable([request]);
        const response = await this.#transport.stream(method, call.signal, call.timeoutMs, headers, input);
        messages = response.message[Symbol.asyncIterator]();
        return messages.next();
      });
      for (; !result.done; result = await messages!.next()) {
        yield result.value;
      }
      this.#retries?.succeeded();
    } catch (failure) {
      throw call.failure(failure);
    } finally {
      this.#end(call);
      // Connect stops the timer of a call that was left early only when its failure is read.
      messages?.next().catch(() => undefined);
    }
  }

  /** Sends a call until it is answered or must not be sent again. */
  async #repeat<T>(call: Call, method: DescMethod, send: () => Promise<T>): Promise<T> {
    const failures: InferwireError[] = [];
    for (;;) {
      try {
        return await send();
      } catch (failure) {
        failures.push(call.failure(failure));
        // Loads change the server: to repeat one is the caller's decision.
        const isRepeatable = method.parent.typeName === InferenceService.typeName && !call.signal.aborted;
        const delay = isRepeatable ? this.#retries?.delay(failures) : undefined;
        if (delay === undefined) {
          throw failures.at(-1);
        }
        await call.sleep(delay);
      }
    }
  }

  #headers(options: CallOptions): Headers {
    const headers = new Headers(options.headers);
    if (this.#token !== undefined) {
      headers.set("authorization", `Bearer ${this.#token}`);
    }
    if (options.requestId !== undefined) {
      headers.set("x-request-id", options.requestId);
    }
    return headers;
  }

  #begin(call: Call, options: CallOptions): void {
    if (this.#isClosed) {
      throw cancelled();
    }
    this.#calls.add(call);
    call.begin(options.timeoutMs ?? this.#defaultTimeoutMs);
  }

  #end(call: Call): void {
    // Connect ends a stream that is left early only by its signal.
    call.abort(cancelled());
    this.#calls.delete(call);
  }
}

function withoutDeadline(options: CallOptions = {}): CallOptions {
  return { ...options, timeoutMs: options.timeoutMs ?? Infinity };
}

function completion(request: CompleteInput): Fields<typeof CompleteRequestSchema> {
  if ("prompt" in request && request.prompt !== undefined) {
    const { prompt, chat, input, ...rest } = request;
    refuse(chat ?? input);
    return { ...rest, input: { case: "prompt", value: prompt } };
  }
  if ("chat" in request && request.chat !== undefined) {
    const { chat, prompt: _, input, ...rest } = request;
    refuse(input);
    return { ...rest, input: { case: "chat", value: chat } };
  }
  return request;
}

/** The types exclude a second input already; this is for callers without types. */
function refuse(secondInput: unknown): void {
  if (secondInput !== undefined) {
    throw new TypeError("give a prompt or a chat, not both");
  }
}
