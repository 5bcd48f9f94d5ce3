package dev.inferwire;

import io.grpc.ClientCall;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.util.Iterator;
import java.util.Locale;
import java.util.NoSuchElementException;

/**
 * The messages of one call, once and in order. {@code hasNext} waits for the next one, and throws
 * {@link InferwireException} when the call fails instead.
 *
 * <p>One thread reads. Any thread may {@code cancel} or {@code close}. To leave a {@code for} does not end the call, so
 * open the stream in a {@code try}: to leave that early cancels the call.
 *
 * @param <E> the type of the messages
 */
public class EventStream<E> implements Iterator<E>, Iterable<E>, AutoCloseable {
  static final String WHY = "the caller cancelled the call";

  final Reading<E> reading;
  private final ClientCall<?, E> call;
  private final Iterator<E> messages;
  private E next;

  /** Starts the call. */
  <Q> EventStream(ClientCall<Q, E> call, Q request, Reading<E> reading) {
    this.reading = reading;
    this.call = call;
    this.messages = ClientCalls.blockingServerStreamingCall(call, request);
  }

  /**
   * Waits for the next event.
   *
   * @return false at the end, and after {@link #close}
   * @throws InferwireException once, when the call fails; then there is no next event
   */
  @Override
  public final boolean hasNext() {
    if (reading.state() == Reading.State.CANCELLED) {
      next = null;
    } else if (next == null && reading.state() == Reading.State.OPEN) {
      next = read();
    }
    return next != null;
  }

  /**
   * Waits for the next event and returns it.
   *
   * @throws InferwireException once, when the call fails
   * @throws NoSuchElementException at the end
   */
  @Override
  public final E next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the stream is at its end");
    }
    E event = next;
    next = null;
    return event;
  }

  private E read() {
    try {
      while (messages.hasNext()) {
        E event = messages.next();
        if (reading.passes(event)) {
          return event;
        }
      }
    } catch (StatusRuntimeException failure) {
      reading.stop(Reading.State.FAILED);
      throw InferwireException.of(failure);
    }
    return reading.end();
  }

  /** Ends the call; who waits for the next event gets InferwireException CANCELLED. After the end it does nothing. */
  public final void cancel() {
    call.cancel(WHY, null);
  }

  /** Cancels the call if it still runs, and ends the iteration. */
  @Override
  public final void close() {
    reading.stop(Reading.State.CANCELLED);
    call.cancel(WHY, null);
  }

  /**
   * Returns this stream itself: it can be read once.
   *
   * @return this
   */
  @Override
  public final Iterator<E> iterator() {
    return this;
  }

  @Override
  public final String toString() {
    String state = reading.state().name().toLowerCase(Locale.ROOT);
    return "<" + getClass().getSimpleName() + " [" + state + "]>";
  }
}
