package dev.inferwire;

import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.StreamLoadResponse;
import java.util.function.Function;

/**
 * The law of a stream as a client reads it, without any I/O: {@link EventStream} and {@link EventPublisher} both ask
 * here.
 *
 * <p>The last event is held back until the status is OK, so whoever has it knows that the answer is whole. Events of an
 * arm that this version does not know are skipped. In a watch, which has no last event, everything passes.
 */
final class Reading<E> {
  /** What an event is to the law. */
  enum Kind {
    PASSES,
    LAST,
    UNKNOWN
  }

  /** Where a stream is. All but OPEN are final. */
  enum State {
    OPEN,
    COMPLETED,
    FAILED,
    CANCELLED
  }

  private final Function<? super E, Kind> law;
  private final boolean mustHaveLast;
  private State state = State.OPEN;
  private E first;
  private E held;

  private Reading(Function<? super E, Kind> law, boolean mustHaveLast) {
    this.law = law;
    this.mustHaveLast = mustHaveLast;
  }

  static Reading<StreamCompleteResponse> ofCompletion() {
    return new Reading<>(
        event ->
            switch (event.getEventCase()) {
              case COMPLETION -> Kind.LAST;
              case EVENT_NOT_SET -> Kind.UNKNOWN;
              default -> Kind.PASSES;
            },
        true);
  }

  static Reading<StreamLoadResponse> ofLoad() {
    return new Reading<>(
        event ->
            switch (event.getEventCase()) {
              case LOADED -> Kind.LAST;
              case EVENT_NOT_SET -> Kind.UNKNOWN;
              default -> Kind.PASSES;
            },
        true);
  }

  static <E> Reading<E> ofWatch() {
    return new Reading<>(event -> Kind.PASSES, false);
  }

  /** Returns whether the caller sees this event now. */
  synchronized boolean passes(E event) {
    Kind kind = law.apply(event);
    if (kind == Kind.LAST) {
      held = event;
    } else if (kind == Kind.PASSES && first == null) {
      first = event;
    }
    return kind == Kind.PASSES;
  }

  /**
   * Takes the status OK and returns the last event, or null in a watch.
   *
   * @throws InferwireException STREAM_TRUNCATED, when the last event never came
   */
  synchronized E end() {
    if (mustHaveLast && held == null) {
      stop(State.FAILED);
      throw InferwireException.streamTruncated();
    }
    stop(State.COMPLETED);
    return held;
  }

  /** Takes an end; the first one counts. */
  synchronized void stop(State end) {
    if (state == State.OPEN) {
      state = end;
    }
  }

  synchronized State state() {
    return state;
  }

  /** Returns the first event that passed, or null before it. */
  synchronized E first() {
    return first;
  }

  /** Returns the last event, or null while the answer is not whole. */
  synchronized E last() {
    return state == State.COMPLETED ? held : null;
  }
}
