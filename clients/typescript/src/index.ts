/**
 * Client of inferwire, a gRPC service for LLM inference, over any Transport of Connect.
 *
 * "inferwire/node" and "inferwire/web" hold all of this and the function that connects.
 *
 * @module
 */
export { Code } from "@connectrpc/connect";

export { assistant, system, textOf, toolResult, user } from "./chat.js";
export { Client, type CallOptions, type ClientOptions, type CompleteInput, type Fields } from "./client.js";
export { InferwireError, type ErrorDetails, type Violation } from "./errors.js";
export { gather, Gatherer } from "./gather.js";
export { CompletionStream, Stream, type StreamState } from "./stream.js";
export { ErrorReason } from "./v1/error_reason_pb.js";
