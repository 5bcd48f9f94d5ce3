package dev.inferwire;

import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.Completion;
import dev.inferwire.v1.Started;
import dev.inferwire.v1.StreamCompleteResponse;
import io.grpc.ClientCall;
import java.util.Optional;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/**
 * The events of one answer: {@code started}, deltas, and {@code completion} last. Unknown events are skipped.
 *
 * <p>The completion comes only when the status is OK, so it proves that the answer is whole.
 */
public final class CompletionStream extends EventStream<StreamCompleteResponse> {
  CompletionStream(ClientCall<CompleteRequest, StreamCompleteResponse> call, CompleteRequest request) {
    super(call, request, Reading.ofCompletion());
  }

  /**
   * Returns the beginning of the answer.
   *
   * @return empty until it has been read
   */
  public Optional<Started> started() {
    return Optional.ofNullable(reading.first())
        .filter(StreamCompleteResponse::hasStarted)
        .map(StreamCompleteResponse::getStarted);
  }

  /**
   * Returns the end of the answer.
   *
   * @return empty until all of it has been read
   */
  public Optional<Completion> completion() {
    return Optional.ofNullable(reading.last()).map(StreamCompleteResponse::getCompletion);
  }

  /**
   * Returns the answer's text as it comes, and nothing else of it. Read this in place of the events.
   *
   * @return a lazy stream; to stop reading it does not end the call, {@link #close} does
   */
  public Stream<String> text() {
    return StreamSupport.stream(spliterator(), false)
        .filter(StreamCompleteResponse::hasText)
        .map(event -> event.getText().getText());
  }

  /**
   * Reads to the end and returns the answer that {@code complete} would have given; in place of the events, not after
   * some of them.
   *
   * @return the whole answer
   * @throws InferwireException the call failed
   */
  public CompleteResponse gather() {
    try (this) {
      return Gatherer.gather(this);
    }
  }
}
