/**
 * A stream of messages as an async iterator, and the law of the stream as a client reads it.
 *
 * @module
 */
import type { Call } from "./call.js";
import { cancelled, streamTruncated } from "./errors.js";
import { gather } from "./gather.js";
import type { CompleteResponse, Completion, Started, StreamCompleteResponse } from "./v1/inference_pb.js";

/** Where a stream is. All but "open" are final. */
export type StreamState = "open" | "completed" | "failed" | "cancelled";

/**
 * The messages of one call, once and in order. The call begins when the first is asked for.
 *
 * To leave a `for await` early ends the call; so do {@link Stream.cancel} and the signal that was given with it.
 */
export class Stream<E> implements AsyncIterableIterator<E, undefined> {
  #state: StreamState = "open";
  readonly #messages: AsyncGenerator<E, undefined>;
  readonly #call: Call;

  /** @internal */
  constructor(messages: AsyncGenerator<E, undefined>, call: Call) {
    this.#messages = messages;
    this.#call = call;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Returns the next message; rejects with InferwireError when the call fails. */
  async next(): Promise<IteratorResult<E, undefined>> {
    try {
      const result = await this.#messages.next();
      if (result.done) {
        this.#stop("completed");
      }
      return result;
    } catch (error) {
      this.#stop("failed");
      throw error;
    }
  }

  /** Cancels the call if it still runs, and ends the iteration. `for await` calls it when it is left early. */
  async return(): Promise<IteratorResult<E, undefined>> {
    this.#stop("cancelled");
    this.cancel();
    return this.#messages.return(undefined);
  }

  /** Ends the call; who waits for the next message gets InferwireError CANCELLED. After the end it does nothing. */
  cancel(): void {
    this.#call.abort(cancelled());
  }

  toString(): string {
    return `<${this.constructor.name} [${this.#state}]>`;
  }

  /** Takes an end; the first counts. */
  #stop(state: StreamState): void {
    if (this.#state === "open") {
      this.#state = state;
    }
  }
}

/**
 * The events of one answer: `started`, deltas, and `completion` last. Unknown events are skipped.
 *
 * The completion comes only when the status is OK, so it proves that the answer is whole.
 */
export class CompletionStream extends Stream<StreamCompleteResponse> {
  #started: Started | undefined;
  #completion: Completion | undefined;

  /** The beginning of the answer; undefined until it has been read. */
  get started(): Started | undefined {
    return this.#started;
  }

  /** The end of the answer; undefined until all of it has been read. */
  get completion(): Completion | undefined {
    return this.#completion;
  }

  override async next(): Promise<IteratorResult<StreamCompleteResponse, undefined>> {
    const result = await super.next();
    const event = result.value?.event;
    if (event?.case === "started") {
      this.#started = event.value;
    } else if (event?.case === "completion") {
      this.#completion = event.value;
    }
    return result;
  }

  /** Yields the answer's text as it comes, and nothing else of it. */
  async *text(): AsyncGenerator<string, undefined> {
    for await (const { event } of this) {
      if (event.case === "text") {
        yield event.value.text;
      }
    }
  }

  /** Reads to the end and returns the answer that `complete` would have given; instead of iterating, not after. */
  gather(): Promise<CompleteResponse> {
    return gather(this);
  }
}

/** A message that is one event of several kinds. */
interface Event {
  readonly event: { readonly case: string | undefined };
}

/**
 * Yields what a caller sees of a stream that must end with an event of the arm `terminal`. That event is held back until
 * the status is OK; events of an arm that this version does not know are skipped.
 *
 * @throws {@link InferwireError} STREAM_TRUNCATED when the status is OK and the terminal event never came.
 */
export async function* lawful<E extends Event>(
  events: AsyncIterable<E>,
  terminal: E["event"]["case"],
): AsyncGenerator<E, undefined> {
  let last: E | undefined;
  for await (const event of events) {
    if (event.event.case === terminal) {
      last = event;
    } else if (event.event.case !== undefined) {
      yield event;
    }
  }
  if (!last) {
    throw streamTruncated();
  }
  yield last;
}
