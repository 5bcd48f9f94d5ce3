package dev.inferwire;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.ResourceInfo;
import com.google.rpc.RetryInfo;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.Completion;
import dev.inferwire.v1.FinishReason;
import dev.inferwire.v1.InferenceServiceGrpc;
import dev.inferwire.v1.ListModelsRequest;
import dev.inferwire.v1.ListModelsResponse;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.LoadResponse;
import dev.inferwire.v1.ModelServiceGrpc;
import dev.inferwire.v1.ReasoningDelta;
import dev.inferwire.v1.Started;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.StreamLoadResponse;
import dev.inferwire.v1.TextDelta;
import dev.inferwire.v1.WatchModelsRequest;
import dev.inferwire.v1.WatchModelsResponse;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerCredentials;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** A real server on a real port that says what no lawful server would, and remembers what it was asked. */
final class FakeServer implements AutoCloseable {
  /** What one call is answered: messages, then at most one status; without a status the call stays open. */
  record Script(List<? extends Message> messages, Refusal end) {}

  /** A status with details. OK is a status as well. */
  record Refusal(Status status, Metadata trailers) {
    static final Refusal OK = new Refusal(Status.OK, new Metadata());

    static Refusal of(Status status, String reason) {
      return new Refusal(status, new Metadata()).with(info("inferwire.dev", reason, Map.of()));
    }

    /** Returns the same with the delay that the server asks for. */
    Refusal after(Duration delay) {
      trailers.put(
          Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER),
          Long.toString(delay.toMillis()));
      return this;
    }

    Refusal with(Message... details) {
      com.google.rpc.Status.Builder all = com.google.rpc.Status.newBuilder();
      for (Message detail : details) {
        all.addDetails(Any.pack(detail));
      }
      return withRaw(all.build().toByteArray());
    }

    Refusal withRaw(byte[] details) {
      trailers.put(Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER), details);
      return this;
    }
  }

  final CountDownLatch isLeft = new CountDownLatch(1);
  final List<Message> requests = new CopyOnWriteArrayList<>();
  volatile Metadata metadata;
  volatile String authority;
  volatile Deadline deadline;
  private final List<Script> scripts = new ArrayList<>();
  private final HealthStatusManager health = new HealthStatusManager();
  private final Server server;

  FakeServer() {
    this(InsecureServerCredentials.create());
  }

  FakeServer(ServerCredentials credentials) {
    server =
        Grpc.newServerBuilderForPort(0, credentials)
            .addService(new Inference())
            .addService(new Models())
            .addService(health.getHealthService())
            .intercept(new Noting())
            .maxInboundMessageSize(Endpoint.MAX_MESSAGE_BYTES)
            .build();
    try {
      server.start();
    } catch (IOException failure) {
      throw new IllegalStateException(failure);
    }
  }

  /** Answers the calls one after another; the last script answers all further ones. */
  FakeServer answers(Script... scripts) {
    this.scripts.addAll(List.of(scripts));
    return this;
  }

  static Script whole(Message... messages) {
    return new Script(List.of(messages), Refusal.OK);
  }

  static Script open(Message... messages) {
    return new Script(List.of(messages), null);
  }

  static Script refused(Refusal end, Message... messages) {
    return new Script(List.of(messages), end);
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  void isHealthy(boolean isHealthy) {
    health.setStatus("", isHealthy ? ServingStatus.SERVING : ServingStatus.NOT_SERVING);
  }

  @Override
  public void close() {
    server.shutdownNow();
  }

  static ErrorInfo info(String domain, String reason, Map<String, String> metadata) {
    return ErrorInfo.newBuilder().setDomain(domain).setReason(reason).putAllMetadata(metadata).build();
  }

  static RetryInfo retry(Duration delay) {
    return RetryInfo.newBuilder()
        .setRetryDelay(
            com.google.protobuf.Duration.newBuilder().setSeconds(delay.getSeconds()).setNanos(delay.getNano()))
        .build();
  }

  static BadRequest violation(String field, String description) {
    return BadRequest.newBuilder()
        .addFieldViolations(
            BadRequest.FieldViolation.newBuilder().setField(field).setDescription(description))
        .build();
  }

  static ResourceInfo resource(String name) {
    return ResourceInfo.newBuilder().setResourceName(name).build();
  }

  static StreamCompleteResponse started() {
    Started started = Started.newBuilder().setId("r1").setModel("demo").build();
    return StreamCompleteResponse.newBuilder().setStarted(started).build();
  }

  static StreamCompleteResponse text(String piece) {
    return StreamCompleteResponse.newBuilder().setText(TextDelta.newBuilder().setText(piece)).build();
  }

  static StreamCompleteResponse reasoning(String piece) {
    return StreamCompleteResponse.newBuilder()
        .setReasoning(ReasoningDelta.newBuilder().setText(piece))
        .build();
  }

  static StreamCompleteResponse completion() {
    Completion completion =
        Completion.newBuilder().setFinishReason(FinishReason.FINISH_REASON_STOP).build();
    return StreamCompleteResponse.newBuilder().setCompletion(completion).build();
  }

  /** Field 127 is in no version of the contract: what an older client sees of a newer server's event. */
  static StreamCompleteResponse unknown() {
    try {
      return StreamCompleteResponse.parseFrom(new byte[] {(byte) 0xfa, 0x07, 0x03, 'n', 'e', 'w'});
    } catch (InvalidProtocolBufferException impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  @SuppressWarnings("unchecked")
  private <R> void play(Message request, StreamObserver<R> observer) {
    requests.add(request);
    Script script;
    synchronized (scripts) {
      script = scripts.size() > 1 ? scripts.remove(0) : scripts.get(0);
    }
    ((ServerCallStreamObserver<R>) observer).setOnCancelHandler(isLeft::countDown);
    script.messages.forEach(message -> observer.onNext((R) message));
    if (script.end == Refusal.OK) {
      observer.onCompleted();
    } else if (script.end != null) {
      observer.onError(script.end.status.asRuntimeException(script.end.trailers));
    }
  }

  private final class Inference extends InferenceServiceGrpc.InferenceServiceImplBase {
    @Override
    public void complete(CompleteRequest request, StreamObserver<CompleteResponse> observer) {
      play(request, observer);
    }

    @Override
    public void streamComplete(CompleteRequest request, StreamObserver<StreamCompleteResponse> observer) {
      play(request, observer);
    }

    @Override
    public void listModels(ListModelsRequest request, StreamObserver<ListModelsResponse> observer) {
      play(request, observer);
    }

    @Override
    public void watchModels(WatchModelsRequest request, StreamObserver<WatchModelsResponse> observer) {
      play(request, observer);
    }
  }

  private final class Models extends ModelServiceGrpc.ModelServiceImplBase {
    @Override
    public void load(LoadRequest request, StreamObserver<LoadResponse> observer) {
      play(request, observer);
    }

    @Override
    public void streamLoad(LoadRequest request, StreamObserver<StreamLoadResponse> observer) {
      play(request, observer);
    }
  }

  /** Notes what comes beside the message. */
  private final class Noting implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      metadata = headers;
      authority = call.getAuthority();
      deadline = Context.current().getDeadline();
      return next.startCall(call, headers);
    }
  }

  /** Returns the entry that the last call carried, or null. */
  String metadata(String key) {
    return metadata.get(Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER));
  }

  /** Returns the seconds that the last call had, or null for no deadline. */
  Long deadlineSeconds() {
    return deadline == null ? null : deadline.timeRemaining(TimeUnit.SECONDS);
  }
}
