package dev.inferwire;

import static dev.inferwire.FakeServer.completion;
import static dev.inferwire.FakeServer.open;
import static dev.inferwire.FakeServer.reasoning;
import static dev.inferwire.FakeServer.refused;
import static dev.inferwire.FakeServer.started;
import static dev.inferwire.FakeServer.text;
import static dev.inferwire.FakeServer.unknown;
import static dev.inferwire.FakeServer.whole;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.inferwire.FakeServer.Refusal;
import dev.inferwire.FakeServer.Script;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.ErrorReason;
import dev.inferwire.v1.LoadProgress;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.StreamLoadResponse;
import dev.inferwire.v1.WatchModelsResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.BiFunction;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Named;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** The law of the stream, as an iterator and as a publisher, against a server that need not keep it. */
class EventStreamTest {
  private static final CompleteRequest REQUEST = CompleteRequest.newBuilder().setPrompt("Hi").build();
  private static final Refusal GONE = Refusal.of(Status.UNAVAILABLE, "MODEL_LOADING");

  private final FakeServer server = new FakeServer();
  private final InferwireClient client = InferwireClient.connect(server.address());

  @AfterEach
  void close() {
    client.close();
    server.close();
  }

  /** Reads a whole stream in one of the ways. */
  private interface Read extends BiFunction<InferwireClient, CompleteRequest, List<StreamCompleteResponse>> {}

  static Stream<Named<Read>> ways() {
    Read iterator =
        (client, request) -> {
          List<StreamCompleteResponse> events = new ArrayList<>();
          client.stream(request).forEach(events::add);
          return events;
        };
    Read publisher =
        (client, request) -> {
          Subscriber subscriber = new Subscriber(1);
          client.publish(request).subscribe(subscriber);
          return subscriber.all();
        };
    return Stream.of(Named.of("iterator", iterator), Named.of("publisher", publisher));
  }

  /** What the server writes is what the caller sees. */
  @ParameterizedTest
  @MethodSource("ways")
  void givesEveryEventInOrder(Read read) {
    server.answers(whole(started(), text("Hel"), text("lo"), completion()));
    assertEquals(List.of(started(), text("Hel"), text("lo"), completion()), read.apply(client, REQUEST));
  }

  /** An arm that this version does not know is skipped, wherever it stands, also after the completion. */
  @ParameterizedTest
  @MethodSource("ways")
  void skipsAnUnknownEvent(Read read) {
    server.answers(whole(unknown(), started(), unknown(), text("a"), completion(), unknown()));
    assertEquals(List.of(started(), text("a"), completion()), read.apply(client, REQUEST));
  }

  /** OK without a completion is the local failure STREAM_TRUNCATED, never a short answer. */
  @ParameterizedTest
  @MethodSource("ways")
  void okWithoutCompletionIsTruncated(Read read) {
    server.answers(whole(started(), text("a")));
    InferwireException error =
        assertThrows(InferwireException.class, () -> read.apply(client, REQUEST));
    assertEquals(Status.Code.ABORTED, error.code());
    assertEquals(Optional.of(ErrorReason.ERROR_REASON_STREAM_TRUNCATED), error.knownReason());
  }

  /** A completion followed by a status that is not OK is a failure. */
  @ParameterizedTest
  @MethodSource("ways")
  void aCompletionBeforeAFailureIsHeldBack(Read read) {
    server.answers(refused(Refusal.of(Status.INTERNAL, "INTERNAL"), started(), text("a"), completion()));
    InferwireException error =
        assertThrows(InferwireException.class, () -> read.apply(client, REQUEST));
    assertEquals("INTERNAL", error.reason());
  }

  /** A refusal without any event is tried again, three times in all; the caller sees the answer alone. */
  @ParameterizedTest
  @MethodSource("ways")
  void retriesBeforeTheFirstEvent(Read read) {
    Refusal full = Refusal.of(Status.RESOURCE_EXHAUSTED, "QUEUE_FULL").after(Duration.ofMillis(10));
    server.answers(refused(GONE.after(Duration.ofMillis(10))), refused(full), whole(started(), completion()));
    assertEquals(List.of(started(), completion()), read.apply(client, REQUEST));
    assertEquals(3, server.requests.size());
  }

  /** After the first event nothing makes the call start again: the text would come twice. */
  @ParameterizedTest
  @MethodSource("ways")
  void doesNotRetryAfterAnEvent(Read read) {
    server.answers(refused(GONE, started(), text("a")));
    InferwireException error =
        assertThrows(InferwireException.class, () -> read.apply(client, REQUEST));
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertEquals(1, server.requests.size());
  }

  /** A server that says a retry is useless gets none. */
  @ParameterizedTest
  @MethodSource("ways")
  void obeysANegativePushback(Read read) {
    server.answers(refused(GONE.after(Duration.ofMillis(-1))));
    assertThrows(InferwireException.class, () -> read.apply(client, REQUEST));
    assertEquals(1, server.requests.size());
  }

  /** What is refused is tried once where the caller wants that. */
  @Test
  void retriesCanBeSwitchedOff() {
    server.answers(refused(GONE));
    try (InferwireClient strict = InferwireClient.builder(server.address()).retry(false).build()) {
      assertThrows(InferwireException.class, () -> strict.stream(REQUEST).gather());
    }
    assertEquals(1, server.requests.size());
  }

  /** {@code started} is there with the first event; {@code completion} only when all has been read; then it is over. */
  @Test
  void tellsItsBeginningAndItsEnd() {
    server.answers(whole(started(), text("a"), completion()));
    try (CompletionStream stream = client.stream(REQUEST)) {
      assertEquals(Optional.empty(), stream.started());
      assertEquals(started(), stream.next());
      assertEquals(Optional.of(started().getStarted()), stream.started());
      assertEquals(text("a"), stream.next());
      assertEquals(Optional.empty(), stream.completion());
      assertEquals("<CompletionStream [open]>", stream.toString());
      assertEquals(completion(), stream.next());
      assertEquals(Optional.of(completion().getCompletion()), stream.completion());
      assertFalse(stream.hasNext());
      assertThrows(NoSuchElementException.class, stream::next);
      assertEquals("<CompletionStream [completed]>", stream.toString());
    }
  }

  /** A failure is told once; then there is nothing more. */
  @Test
  void aFailureEndsTheStream() {
    server.answers(refused(GONE, started()));
    CompletionStream stream = client.stream(REQUEST);
    assertEquals(started(), stream.next());
    assertThrows(InferwireException.class, stream::next);
    assertFalse(stream.hasNext());
    assertEquals("<CompletionStream [failed]>", stream.toString());
  }

  /** {@code text} leaves out thoughts and whatever else comes. */
  @Test
  void textIsOnlyTheText() {
    server.answers(whole(started(), reasoning("hm"), text("a"), unknown(), text("b"), completion()));
    assertEquals(List.of("a", "b"), client.stream(REQUEST).text().toList());
  }

  /** Who leaves a stream early ends the generation at the server. */
  @Test
  void leavingTheTryCancels() throws InterruptedException {
    server.answers(open(started(), text("a")));
    CompletionStream stream = client.stream(REQUEST);
    try (stream) {
      assertEquals("a", stream.text().findFirst().orElseThrow());
    }
    assertFalse(stream.hasNext());
    assertEquals("<CompletionStream [cancelled]>", stream.toString());
    assertTrue(server.isLeft.await(10, TimeUnit.SECONDS));
  }

  /** A cancelled stream ends with CANCELLED, so nobody takes it for a whole answer. */
  @Test
  void cancelIsToldToTheReader() throws InterruptedException {
    server.answers(open(started()));
    CompletionStream stream = client.stream(REQUEST);
    assertEquals(started(), stream.next());
    stream.cancel();
    InferwireException error = assertThrows(InferwireException.class, stream::next);
    assertEquals(Status.Code.CANCELLED, error.code());
    assertTrue(server.isLeft.await(10, TimeUnit.SECONDS));
  }

  /** An interrupted reader stops waiting, stays interrupted, and the server learns of it. */
  @Test
  void interruptingTheReaderCancels() throws InterruptedException {
    server.answers(open(started()));
    CompletionStream stream = client.stream(REQUEST);
    assertEquals(started(), stream.next());
    Thread.currentThread().interrupt();
    InferwireException error = assertThrows(InferwireException.class, stream::next);
    assertTrue(Thread.interrupted());
    assertEquals(Status.Code.CANCELLED, error.code());
    assertTrue(server.isLeft.await(10, TimeUnit.SECONDS));
  }

  /** A call's own deadline is DEADLINE_EXCEEDED, and the server learns of it. */
  @Test
  void aDeadlineEndsTheStream() throws InterruptedException {
    server.answers(open(started()));
    InferwireClient hasty = client.withTimeout(Duration.ofMillis(300));
    InferwireException error =
        assertThrows(InferwireException.class, () -> hasty.stream(REQUEST).gather());
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    assertTrue(server.isLeft.await(10, TimeUnit.SECONDS));
  }

  /** The way of a load that ends without {@code loaded} is truncated as well. */
  @Test
  void aLoadCanBeTruncated() {
    StreamLoadResponse progress =
        StreamLoadResponse.newBuilder().setProgress(LoadProgress.newBuilder().setFraction(0.5f)).build();
    server.answers(whole(progress));
    EventStream<StreamLoadResponse> stream = client.streamLoad(LoadRequest.getDefaultInstance());
    assertEquals(progress, stream.next());
    InferwireException error = assertThrows(InferwireException.class, stream::hasNext);
    assertEquals("STREAM_TRUNCATED", error.reason());
  }

  /** A watch has no last event: all pass, and OK is a lawful end. */
  @Test
  void aWatchHasNoLastEvent() {
    WatchModelsResponse snapshot = WatchModelsResponse.newBuilder().setRevision(1).build();
    server.answers(new Script(List.of(snapshot, snapshot), Refusal.OK));
    List<WatchModelsResponse> snapshots = new ArrayList<>();
    client.watchModels().forEach(snapshots::add);
    assertEquals(List.of(snapshot, snapshot), snapshots);
  }

  /** A subscriber gets no event that it did not request. */
  @Test
  void aPublisherKeepsToTheDemand() throws InterruptedException {
    server.answers(whole(started(), text("a"), completion()));
    Subscriber subscriber = new Subscriber(0);
    client.publish(REQUEST).subscribe(subscriber);
    subscriber.subscription.request(2);
    assertEquals(started(), subscriber.take());
    assertEquals(text("a"), subscriber.take());
    assertTrue(subscriber.signals.isEmpty());
    subscriber.subscription.request(Long.MAX_VALUE);
    assertEquals(completion(), subscriber.take());
    assertEquals(Subscriber.END, subscriber.take());
  }

  /** To cancel a subscription ends the generation, and nothing more is told. */
  @Test
  void cancellingASubscriptionCancels() throws InterruptedException {
    server.answers(open(started()));
    Subscriber subscriber = new Subscriber(1);
    client.publish(REQUEST).subscribe(subscriber);
    assertEquals(started(), subscriber.take());
    subscriber.subscription.cancel();
    assertTrue(server.isLeft.await(10, TimeUnit.SECONDS));
    assertTrue(subscriber.signals.isEmpty());
  }

  /** Who cancels at once has asked for nothing. */
  @Test
  void aSubscriptionCanBeCancelledBeforeItsStart() {
    Subscriber subscriber =
        new Subscriber(0) {
          @Override
          public void onSubscribe(Flow.Subscription subscription) {
            subscription.cancel();
          }
        };
    client.publish(REQUEST).subscribe(subscriber);
    assertTrue(subscriber.signals.isEmpty());
    assertEquals(List.of(), server.requests);
  }

  /** A demand that is none is the subscriber's mistake, and told to it. */
  @Test
  void aSubscriberMustRequestSomething() throws InterruptedException {
    server.answers(open(started()));
    Subscriber subscriber = new Subscriber(1);
    client.publish(REQUEST).subscribe(subscriber);
    assertEquals(started(), subscriber.take());
    subscriber.subscription.request(0);
    assertEquals(IllegalArgumentException.class, subscriber.take().getClass());
  }

  /** Keeps what it is told, and requests as many events again as it got. */
  private static class Subscriber implements Flow.Subscriber<StreamCompleteResponse> {
    static final Object END = "end";

    final BlockingQueue<Object> signals = new LinkedBlockingQueue<>();
    volatile Flow.Subscription subscription;
    private final int demand;

    Subscriber(int demand) {
      this.demand = demand;
    }

    @Override
    public void onSubscribe(Flow.Subscription subscription) {
      this.subscription = subscription;
      if (demand > 0) {
        subscription.request(demand);
      }
    }

    @Override
    public void onNext(StreamCompleteResponse event) {
      signals.add(event);
      if (demand > 0) {
        subscription.request(demand);
      }
    }

    @Override
    public void onError(Throwable failure) {
      signals.add(failure);
    }

    @Override
    public void onComplete() {
      signals.add(END);
    }

    Object take() throws InterruptedException {
      Object signal = signals.poll(10, TimeUnit.SECONDS);
      assertTrue(signal != null, "nothing was told in time");
      return signal;
    }

    List<StreamCompleteResponse> all() {
      List<StreamCompleteResponse> events = new ArrayList<>();
      try {
        Object signal = take();
        while (signal instanceof StreamCompleteResponse event) {
          events.add(event);
          signal = take();
        }
        if (signal instanceof RuntimeException failure) {
          throw failure;
        }
      } catch (InterruptedException interrupted) {
        throw new IllegalStateException(interrupted);
      }
      return events;
    }
  }
}
