package dev.inferwire;

import com.google.protobuf.MessageLite;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.CountTokensResponse;
import dev.inferwire.v1.DetokenizeRequest;
import dev.inferwire.v1.DetokenizeResponse;
import dev.inferwire.v1.EmbedRequest;
import dev.inferwire.v1.EmbedResponse;
import dev.inferwire.v1.GetModelRequest;
import dev.inferwire.v1.GetModelResponse;
import dev.inferwire.v1.HealthRequest;
import dev.inferwire.v1.HealthResponse;
import dev.inferwire.v1.InferenceServiceGrpc;
import dev.inferwire.v1.ListBackendsRequest;
import dev.inferwire.v1.ListBackendsResponse;
import dev.inferwire.v1.ListModelsRequest;
import dev.inferwire.v1.ListModelsResponse;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.LoadResponse;
import dev.inferwire.v1.ModelServiceGrpc;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.StreamLoadResponse;
import dev.inferwire.v1.TokenizeRequest;
import dev.inferwire.v1.TokenizeResponse;
import dev.inferwire.v1.UnloadRequest;
import dev.inferwire.v1.UnloadResponse;
import dev.inferwire.v1.WatchModelsRequest;
import dev.inferwire.v1.WatchModelsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.nio.file.Path;
import java.time.Duration;
import java.time.temporal.ChronoUnit;
import java.util.Objects;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;

/**
 * A connection to a server. Threads may share it; it connects at the first call and again after a loss.
 *
 * <p>Every call throws {@link InferwireException}. It may take the client's default timeout, or what
 * {@link #withTimeout} says; loads and watches have no deadline unless that says one. gRPC repeats a call of the
 * inference service up to twice while nothing of its answer has come.
 */
public final class InferwireClient implements AutoCloseable {
  /** A timeout that never comes. */
  public static final Duration NO_TIMEOUT = ChronoUnit.FOREVER.getDuration();

  private static final Duration MAX_TIMEOUT = Duration.ofNanos(Long.MAX_VALUE);

  private final ManagedChannel connection;
  private final Channel channel;
  private final Duration defaultTimeout;
  /** Null: the default of the RPC. */
  private final Duration timeout;

  private final String description;

  private InferwireClient(
      ManagedChannel connection, Channel channel, Duration defaultTimeout, Duration timeout, String description) {
    this.connection = connection;
    this.channel = channel;
    this.defaultTimeout = defaultTimeout;
    this.timeout = timeout;
    this.description = description;
  }

  /**
   * Returns a client with the defaults of {@link #builder}.
   *
   * @param target where the server is
   * @return the client, which the caller closes
   */
  public static InferwireClient connect(String target) {
    return builder(target).build();
  }

  /**
   * Returns the options of a client.
   *
   * @param target where the server is, such as "127.0.0.1:50051" or "dns:///inferwire.example:443"
   * @return the options, all at their defaults
   */
  public static Builder builder(String target) {
    return new Builder(target);
  }

  /**
   * Returns a client of the same connection whose calls may take this long. To close either closes both.
   *
   * @param timeout how long; {@link #NO_TIMEOUT} for no deadline
   * @return a view of this client
   */
  public InferwireClient withTimeout(Duration timeout) {
    Objects.requireNonNull(timeout, "timeout");
    return new InferwireClient(connection, channel, defaultTimeout, timeout, description);
  }

  /**
   * Returns a client of the same connection whose calls carry this id in place of one that the server makes. To close
   * either closes both.
   *
   * @param id the request's id; {@code started} tells it back
   * @return a view of this client
   */
  public InferwireClient withRequestId(String id) {
    return withMetadata("x-request-id", id);
  }

  /**
   * Returns a client of the same connection whose calls carry one more entry of metadata. To close either closes both.
   *
   * @param key the entry's name in lower case
   * @param value its value in ASCII
   * @return a view of this client
   */
  public InferwireClient withMetadata(String key, String value) {
    return new InferwireClient(connection, carrying(channel, key, value), defaultTimeout, timeout, description);
  }

  /**
   * Returns the connection, for stubs of other services such as grpc.health.v1. It carries this client's token and
   * metadata, and no deadline. {@link InferwireException#of} tells the failures of such a stub.
   *
   * @return a channel that lives as long as this client
   */
  public Channel channel() {
    return channel;
  }

  /** Closes the connection; calls that still run fail. */
  @Override
  public void close() {
    connection.shutdownNow();
  }

  @Override
  public String toString() {
    return "<InferwireClient [" + description + "]>";
  }

  /**
   * Returns the whole answer.
   *
   * @param request what is completed
   * @return what the gathered stream would be
   */
  public CompleteResponse complete(CompleteRequest request) {
    return call(InferenceServiceGrpc.getCompleteMethod(), request, defaultTimeout);
  }

  /**
   * Returns the answer as it is made. Open it in a {@code try}: to leave that early cancels the generation.
   *
   * @param request what is completed
   * @return its events
   */
  public CompletionStream stream(CompleteRequest request) {
    return new CompletionStream(
        start(InferenceServiceGrpc.getStreamCompleteMethod(), request, defaultTimeout), request);
  }

  /**
   * Returns the answer as it is made, for a subscriber. The events are those of {@link #stream}; they come on threads
   * of the channel, as many as are requested. To cancel the subscription cancels the generation.
   *
   * @param request what is completed
   * @return a publisher that asks anew for each subscriber
   */
  public Flow.Publisher<StreamCompleteResponse> publish(CompleteRequest request) {
    return new EventPublisher<>(
        () -> start(InferenceServiceGrpc.getStreamCompleteMethod(), request, defaultTimeout),
        request,
        Reading::ofCompletion);
  }

  /**
   * Returns one vector per text, in order.
   *
   * @param request the texts
   * @return the vectors
   */
  public EmbedResponse embed(EmbedRequest request) {
    return call(InferenceServiceGrpc.getEmbedMethod(), request, defaultTimeout);
  }

  /**
   * Returns how many tokens the request would put before the model; nothing is generated.
   *
   * @param request what would be completed
   * @return the number
   */
  public CountTokensResponse countTokens(CompleteRequest request) {
    return call(InferenceServiceGrpc.getCountTokensMethod(), request, defaultTimeout);
  }

  /**
   * Returns the tokens of a text with the bytes of each.
   *
   * @param request the text
   * @return its tokens
   */
  public TokenizeResponse tokenize(TokenizeRequest request) {
    return call(InferenceServiceGrpc.getTokenizeMethod(), request, defaultTimeout);
  }

  /**
   * Returns the bytes that the tokens stand for.
   *
   * @param request the tokens
   * @return their bytes, which need not be valid UTF-8
   */
  public DetokenizeResponse detokenize(DetokenizeRequest request) {
    return call(InferenceServiceGrpc.getDetokenizeMethod(), request, defaultTimeout);
  }

  /**
   * Returns every model in any state, and the default model's name.
   *
   * @return the models by name
   */
  public ListModelsResponse listModels() {
    return call(
        InferenceServiceGrpc.getListModelsMethod(), ListModelsRequest.getDefaultInstance(), defaultTimeout);
  }

  /**
   * Returns one model.
   *
   * @param model its name
   * @return the model
   */
  public GetModelResponse getModel(String model) {
    GetModelRequest request = GetModelRequest.newBuilder().setModel(model).build();
    return call(InferenceServiceGrpc.getGetModelMethod(), request, defaultTimeout);
  }

  /**
   * Returns the list of models now and again after every change.
   *
   * @return the lists; they end only by failure or by the caller
   */
  public EventStream<WatchModelsResponse> watchModels() {
    WatchModelsRequest request = WatchModelsRequest.getDefaultInstance();
    return new EventStream<>(
        start(InferenceServiceGrpc.getWatchModelsMethod(), request, NO_TIMEOUT), request, Reading.ofWatch());
  }

  /**
   * Returns the backends with their capabilities, models and health.
   *
   * @return the backends by id
   */
  public ListBackendsResponse listBackends() {
    return call(
        InferenceServiceGrpc.getListBackendsMethod(), ListBackendsRequest.getDefaultInstance(), defaultTimeout);
  }

  /**
   * Returns what the server is and how it is.
   *
   * @return the same for every caller
   */
  public HealthResponse health() {
    return call(InferenceServiceGrpc.getHealthMethod(), HealthRequest.getDefaultInstance(), defaultTimeout);
  }

  /**
   * Loads a model and returns when it is ready. To stop waiting does not stop the load: {@link #unload} does.
   *
   * @param request what is loaded, and how
   * @return the model
   */
  public LoadResponse load(LoadRequest request) {
    return call(ModelServiceGrpc.getLoadMethod(), request, NO_TIMEOUT);
  }

  /**
   * Returns the way of a load: any number of {@code progress}, then exactly one {@code loaded}. To leave it does not
   * stop the load.
   *
   * @param request what is loaded, and how
   * @return the events of the load
   */
  public EventStream<StreamLoadResponse> streamLoad(LoadRequest request) {
    return new EventStream<>(
        start(ModelServiceGrpc.getStreamLoadMethod(), request, NO_TIMEOUT), request, Reading.ofLoad());
  }

  /**
   * Unloads a model.
   *
   * @param request which, and how long running requests may go on
   * @return whether it was loaded, and how many streams ended
   */
  public UnloadResponse unload(UnloadRequest request) {
    return call(ModelServiceGrpc.getUnloadMethod(), request, defaultTimeout);
  }

  private <Q extends MessageLite, R> R call(MethodDescriptor<Q, R> method, Q request, Duration usual) {
    refuseTooLarge(request);
    try {
      return ClientCalls.blockingUnaryCall(channel, method, options(usual), request);
    } catch (StatusRuntimeException failure) {
      throw InferwireException.of(failure);
    }
  }

  private <Q extends MessageLite, E> ClientCall<Q, E> start(
      MethodDescriptor<Q, E> method, Q request, Duration usual) {
    refuseTooLarge(request);
    return channel.newCall(method, options(usual));
  }

  private CallOptions options(Duration usual) {
    Duration chosen = timeout == null ? usual : timeout;
    return chosen.compareTo(MAX_TIMEOUT) >= 0
        ? CallOptions.DEFAULT
        : CallOptions.DEFAULT.withDeadlineAfter(chosen.toNanos(), TimeUnit.NANOSECONDS);
  }

  /** The server would refuse it too, but only when all of it is there, and gRPC would send it again. */
  private static void refuseTooLarge(MessageLite request) {
    if (request.getSerializedSize() > Endpoint.MAX_MESSAGE_BYTES) {
      throw InferwireException.requestTooLarge(request.getSerializedSize(), Endpoint.MAX_MESSAGE_BYTES);
    }
  }

  private static Channel carrying(Channel channel, String key, String value) {
    Metadata metadata = new Metadata();
    metadata.put(Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER), value);
    return ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** The options of a client. What is not said has a default that suits most. */
  public static final class Builder {
    private final String target;
    private String token;
    private Boolean tls;
    private Path certificateAuthority;
    private Path certificate;
    private Path key;
    private String serverName;
    private Duration defaultTimeout = Duration.ofSeconds(300);
    private boolean retry = true;
    private boolean roundRobin;

    private Builder(String target) {
      this.target = Objects.requireNonNull(target, "target");
    }

    /**
     * The key that every call carries. Default: none.
     *
     * @param token the key, without "Bearer"
     * @return this
     */
    public Builder token(String token) {
      this.token = token;
      return this;
    }

    /**
     * Whether the connection is encrypted. Default: plain text to this machine, TLS to any other and wherever a
     * certificate is given.
     *
     * @param tls false for a network that is trusted or secured otherwise
     * @return this
     */
    public Builder tls(boolean tls) {
      this.tls = tls;
      return this;
    }

    /**
     * Who signs the server's certificate. Default: those that Java trusts.
     *
     * @param pem a file of certificates
     * @return this
     */
    public Builder certificateAuthority(Path pem) {
      this.certificateAuthority = pem;
      return this;
    }

    /**
     * The client's own certificate, for servers that ask for one. Default: none.
     *
     * @param pem a file with the certificate and those between it and its authority
     * @param key a file with its key, as PKCS #8 without a password
     * @return this
     */
    public Builder clientCertificate(Path pem, Path key) {
      this.certificate = pem;
      this.key = key;
      return this;
    }

    /**
     * The name that the server's certificate must have. Default: that of the target.
     *
     * @param name a host name
     * @return this
     */
    public Builder serverName(String name) {
      this.serverName = name;
      return this;
    }

    /**
     * How long a call may take when it does not say so itself. Default: 300 seconds. Loads and watches have no deadline
     * of their own.
     *
     * @param timeout how long; {@link #NO_TIMEOUT} for no deadline
     * @return this
     */
    public Builder defaultTimeout(Duration timeout) {
      this.defaultTimeout = Objects.requireNonNull(timeout, "timeout");
      return this;
    }

    /**
     * Whether gRPC repeats a call of the inference service that the server refused for now. Default: it does.
     *
     * @param retry false to hear of every refusal
     * @return this
     */
    public Builder retry(boolean retry) {
      this.retry = retry;
      return this;
    }

    /**
     * Whether calls go to all addresses of the target in turn, leaving out servers that say they are not healthy.
     * Default: all calls go to one.
     *
     * @param roundRobin true for a target with several servers behind one name
     * @return this
     */
    public Builder roundRobin(boolean roundRobin) {
      this.roundRobin = roundRobin;
      return this;
    }

    /**
     * Returns the client. Nothing is sent before its first call.
     *
     * @return the client, which the caller closes
     * @throws java.io.UncheckedIOException a certificate or key cannot be read
     */
    public InferwireClient build() {
      boolean hasCertificates = certificateAuthority != null || certificate != null;
      boolean isTls = tls == null ? hasCertificates || !Endpoint.isLocal(target) : tls;
      Endpoint endpoint =
          new Endpoint(
              target, isTls, certificateAuthority, certificate, key, serverName, retry, roundRobin);
      ManagedChannel connection = endpoint.channel();
      boolean hasToken = token != null && !token.isEmpty();
      return new InferwireClient(
          connection,
          hasToken ? carrying(connection, "authorization", "Bearer " + token) : connection,
          defaultTimeout,
          null,
          endpoint + (hasToken ? " | token" : " | no token"));
    }
  }
}
