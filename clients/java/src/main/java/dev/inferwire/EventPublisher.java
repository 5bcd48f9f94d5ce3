package dev.inferwire;

import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.Objects;
import java.util.concurrent.Flow;
import java.util.function.Supplier;

/**
 * A call for each subscriber, which gets its events as it requests them. What is not requested is not read, so a slow
 * subscriber holds the server back.
 */
final class EventPublisher<Q, E> implements Flow.Publisher<E> {
  private final Supplier<ClientCall<Q, E>> calls;
  private final Q request;
  private final Supplier<Reading<E>> readings;

  EventPublisher(Supplier<ClientCall<Q, E>> calls, Q request, Supplier<Reading<E>> readings) {
    this.calls = calls;
    this.request = request;
    this.readings = readings;
  }

  @Override
  public void subscribe(Flow.Subscriber<? super E> subscriber) {
    Objects.requireNonNull(subscriber, "subscriber");
    new Subscription<>(calls.get(), readings.get(), subscriber).start(request);
  }

  /** One call. gRPC's own count of requested messages is the subscriber's demand. */
  private static final class Subscription<Q, E> extends ClientCall.Listener<E> implements Flow.Subscription {
    private final ClientCall<Q, E> call;
    private final Reading<E> reading;
    private final Flow.Subscriber<? super E> subscriber;
    // Guarded by this. gRPC takes nothing of a call, not even its end, before the request is sent.
    private boolean isSent;
    private long earlyDemand;
    private IllegalArgumentException refusal;

    Subscription(ClientCall<Q, E> call, Reading<E> reading, Flow.Subscriber<? super E> subscriber) {
      this.call = call;
      this.reading = reading;
      this.subscriber = subscriber;
    }

    void start(Q request) {
      subscriber.onSubscribe(this);
      if (reading.state() != Reading.State.OPEN) {
        return;
      }
      call.start(this, new Metadata());
      call.sendMessage(request);
      call.halfClose();
      synchronized (this) {
        isSent = true;
        if (refusal != null || reading.state() == Reading.State.CANCELLED) {
          call.cancel(EventStream.WHY, refusal);
        } else if (earlyDemand > 0) {
          call.request((int) Math.min(earlyDemand, Integer.MAX_VALUE));
        }
      }
    }

    @Override
    public synchronized void request(long count) {
      if (count <= 0) {
        refusal = new IllegalArgumentException("a subscriber must request at least one event");
        if (isSent) {
          call.cancel(EventStream.WHY, refusal);
        }
      } else if (isSent) {
        call.request((int) Math.min(count, Integer.MAX_VALUE));
      } else {
        earlyDemand = count > Long.MAX_VALUE - earlyDemand ? Long.MAX_VALUE : earlyDemand + count;
      }
    }

    @Override
    public synchronized void cancel() {
      reading.stop(Reading.State.CANCELLED);
      if (isSent) {
        call.cancel(EventStream.WHY, null);
      }
    }

    @Override
    public void onMessage(E event) {
      if (reading.state() != Reading.State.OPEN) {
        return;
      }
      if (reading.passes(event)) {
        subscriber.onNext(event);
      } else {
        // Its place in the demand is still open: for the next event, or for the one that is held back.
        call.request(1);
      }
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (reading.state() != Reading.State.OPEN) {
        return;
      }
      if (!status.isOk()) {
        reading.stop(Reading.State.FAILED);
        subscriber.onError(failure(status, trailers));
        return;
      }
      E last;
      try {
        last = reading.end();
      } catch (InferwireException truncated) {
        subscriber.onError(truncated);
        return;
      }
      if (last != null) {
        subscriber.onNext(last);
      }
      subscriber.onComplete();
    }

    private synchronized Exception failure(Status status, Metadata trailers) {
      return refusal != null ? refusal : InferwireException.of(status.asRuntimeException(trailers));
    }
  }
}
