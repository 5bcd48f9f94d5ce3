/**
 * The turns of a conversation as messages of the contract, and a message's text.
 *
 * @module
 */
import { create } from "@bufbuild/protobuf";

import { MessageSchema, Role, type Message } from "./v1/inference_pb.js";

/** Returns the operator's turn, which stands first in a chat. */
export function system(text: string): Message {
  return turn(Role.SYSTEM, text);
}

/** Returns a person's turn. */
export function user(text: string): Message {
  return turn(Role.USER, text);
}

/** Returns a turn of the model. An answer's own `message` says more (thoughts, tool calls): prefer it. */
export function assistant(text: string): Message {
  return turn(Role.ASSISTANT, text);
}

/** Returns the turn that answers the tool call `callId`. */
export function toolResult(callId: string, text: string, { isError = false } = {}): Message {
  return create(MessageSchema, {
    role: Role.TOOL,
    parts: [{ part: { case: "toolResult", value: { callId, text, isError } } }],
  });
}

/** Returns the message's text parts, joined; thoughts and tool calls are not text. */
export function textOf(message: Message | undefined): string {
  return (message?.parts ?? []).map(({ part }) => (part.case === "text" ? part.value : "")).join("");
}

function turn(role: Role, text: string): Message {
  return create(MessageSchema, { role, parts: [{ part: { case: "text", value: text } }] });
}
