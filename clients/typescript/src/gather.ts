/**
 * A stream into the unary answer. Owns what "the concatenation of the deltas" means; does no I/O.
 *
 * @module
 */
import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { streamTruncated } from "./errors.js";
import {
  CompleteResponseSchema,
  type CompleteResponse,
  type Completion,
  type PartSchema,
  type ReasoningDelta,
  Role,
  type Started,
  type StreamCompleteResponse,
  type TextDelta,
  type TokenLogprob,
  type ToolCallDelta,
} from "./v1/inference_pb.js";

/**
 * Takes the events of one stream in order and gives the answer that Complete would have given.
 *
 * Parts stand in the order of their first delta:
 *
 * - text extends the last part when that is text, else it begins one;
 * - reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
 * - a tool call is one part wherever its deltas stand, told apart by its index.
 *
 * Token ids and logprobs concatenate over all events, those of the completion included. Events of an unknown kind and
 * progress leave no trace.
 */
export class Gatherer {
  #started: Started | undefined;
  #completion: Completion | undefined;
  readonly #parts: (Text | Thought | Call)[] = [];
  readonly #calls = new Map<number, Call>();
  readonly #tokenIds: number[] = [];
  readonly #logprobs: TokenLogprob[] = [];

  /** Takes the next event, which must not change afterwards. */
  add({ event }: StreamCompleteResponse): void {
    switch (event.case) {
      case "started":
        this.#started = event.value;
        break;
      case "text":
        this.#addText(event.value);
        break;
      case "reasoning":
        this.#addReasoning(event.value);
        break;
      case "toolCall":
        this.#addToolCall(event.value);
        break;
      case "completion":
        this.#completion = event.value;
        this.#addTokens(event.value);
        break;
      case "progress":
      case undefined:
        break;
    }
  }

  /** Returns the answer so far, as a new message. `completion` is unset until its event came. */
  response(): CompleteResponse {
    return create(CompleteResponseSchema, {
      ...(this.#started && { started: this.#started }),
      message: { role: Role.ASSISTANT, parts: this.#parts.map(build) },
      tokenIds: [...this.#tokenIds],
      logprobs: [...this.#logprobs],
      ...(this.#completion && { completion: this.#completion }),
    });
  }

  toString(): string {
    const state = this.#completion ? "completed" : this.#started ? "started" : "new";
    return `<Gatherer [${state} | parts ${this.#parts.length} | token ids ${this.#tokenIds.length}]>`;
  }

  #addText(delta: TextDelta): void {
    this.#addTokens(delta);
    if (!delta.text) {
      return;
    }
    const last = this.#parts.at(-1);
    if (last?.kind === "text") {
      last.text += delta.text;
    } else {
      this.#parts.push({ kind: "text", text: delta.text });
    }
  }

  #addReasoning(delta: ReasoningDelta): void {
    this.#addTokens(delta);
    if (!delta.text && !delta.signature.length) {
      return;
    }
    const last = this.#parts.at(-1);
    if (last?.kind === "thought" && !last.signature.length) {
      last.text += delta.text;
      last.signature = delta.signature;
    } else {
      this.#parts.push({ kind: "thought", text: delta.text, signature: delta.signature });
    }
  }

  #addToolCall(delta: ToolCallDelta): void {
    this.#addTokens(delta);
    let call = this.#calls.get(delta.index);
    if (!call) {
      call = { kind: "call", id: "", name: "", arguments: "", signature: new Uint8Array() };
      this.#calls.set(delta.index, call);
      this.#parts.push(call);
    }
    call.id ||= delta.id;
    call.name ||= delta.name;
    call.arguments += delta.arguments;
    call.signature = concat(call.signature, delta.signature);
  }

  #addTokens(delta: TextDelta | ReasoningDelta | ToolCallDelta | Completion): void {
    // One by one: a spread into push() has as many arguments as there are tokens.
    for (const tokenId of delta.tokenIds) {
      this.#tokenIds.push(tokenId);
    }
    for (const logprob of delta.logprobs) {
      this.#logprobs.push(logprob);
    }
  }
}

/**
 * Reads `events` to their end and returns the answer.
 *
 * @throws {@link InferwireError} STREAM_TRUNCATED when they end without a completion.
 */
export async function gather(
  events: AsyncIterable<StreamCompleteResponse> | Iterable<StreamCompleteResponse>,
): Promise<CompleteResponse> {
  const gatherer = new Gatherer();
  for await (const event of events) {
    gatherer.add(event);
  }
  const response = gatherer.response();
  if (!response.completion) {
    throw streamTruncated();
  }
  return response;
}

interface Text {
  readonly kind: "text";
  text: string;
}

interface Thought {
  readonly kind: "thought";
  text: string;
  signature: Uint8Array;
}

interface Call {
  readonly kind: "call";
  id: string;
  name: string;
  arguments: string;
  signature: Uint8Array;
}

function build(part: Text | Thought | Call): MessageInitShape<typeof PartSchema> {
  switch (part.kind) {
    case "text":
      return { part: { case: "text", value: part.text } };
    case "thought":
      return { part: { case: "reasoning", value: { text: part.text, signature: part.signature } } };
    case "call": {
      const { kind: _, ...call } = part;
      return { part: { case: "toolCall", value: call } };
    }
  }
}

function concat(left: Uint8Array, right: Uint8Array): Uint8Array {
  if (!right.length) {
    return left;
  }
  const whole = new Uint8Array(left.length + right.length);
  whole.set(left);
  whole.set(right, left.length);
  return whole;
}
