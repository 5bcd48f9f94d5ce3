/**
 * A client of inferwire, a gRPC service for LLM inference.
 *
 * <p>{@link dev.inferwire.InferwireClient} connects and asks, {@link dev.inferwire.CompletionStream} is an answer as it
 * is made, {@link dev.inferwire.Gatherer} makes a stream into the unary answer, and
 * {@link dev.inferwire.InferwireException} is the one failure. The messages are in {@code dev.inferwire.v1}, which is
 * generated.
 */
package dev.inferwire;
