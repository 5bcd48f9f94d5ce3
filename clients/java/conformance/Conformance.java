import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.MessageLite;
import dev.inferwire.CompletionStream;
import dev.inferwire.EventStream;
import dev.inferwire.InferwireClient;
import dev.inferwire.InferwireException;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.DetokenizeRequest;
import dev.inferwire.v1.EmbedRequest;
import dev.inferwire.v1.GetModelRequest;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.TokenizeRequest;
import dev.inferwire.v1.UnloadRequest;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.health.v1.HealthGrpc.HealthBlockingStub;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * Makes the calls that it reads as JSON lines, one after another, and writes what a caller of this client sees, one
 * line for each.
 */
final class Conformance {
  private final Map<JsonElement, InferwireClient> clients = new HashMap<>();

  private Conformance() {}

  public static void main(String[] arguments) throws IOException {
    Conformance conformance = new Conformance();
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      answers.println(conformance.answer(line));
    }
    conformance.clients.values().forEach(InferwireClient::close);
  }

  private JsonObject answer(String line) {
    JsonObject answer = new JsonObject();
    answer.add("id", JsonNull.INSTANCE);
    try {
      JsonObject job = JsonParser.parseString(line).getAsJsonObject();
      answer.add("id", job.get("id"));
      Call call = new Call(job.getAsJsonObject("connect"), job.getAsJsonObject("call"));
      JsonElement error = JsonNull.INSTANCE;
      try {
        call.make();
      } catch (InferwireException failure) {
        error = tell(failure);
      }
      JsonArray messages = new JsonArray();
      call.seen.forEach(message -> messages.add(Base64.getEncoder().encodeToString(message.toByteArray())));
      answer.add("messages", messages);
      answer.add("error", error);
      answer.addProperty("left_early", call.hasLeftEarly);
    } catch (InvalidProtocolBufferException | RuntimeException unreadable) {
      answer.addProperty("fault", unreadable.toString());
    }
    return answer;
  }

  private static JsonObject tell(InferwireException failure) {
    JsonObject error = new JsonObject();
    error.addProperty("code", failure.code().name());
    error.addProperty("reason", failure.reason());
    error.addProperty("message", failure.message());
    JsonObject metadata = new JsonObject();
    failure.metadata().forEach(metadata::addProperty);
    error.add("metadata", metadata);
    error.addProperty("retry_delay_ms", failure.retryDelay().map(Duration::toMillis).orElse(null));
    JsonArray violations = new JsonArray();
    for (InferwireException.Violation violation : failure.violations()) {
      JsonObject told = new JsonObject();
      told.addProperty("field", violation.field());
      told.addProperty("description", violation.description());
      violations.add(told);
    }
    error.add("violations", violations);
    error.addProperty("resource", failure.resource());
    return error;
  }

  private InferwireClient client(JsonObject connect) {
    return clients.computeIfAbsent(connect, unused -> connect(connect));
  }

  private static InferwireClient connect(JsonObject connect) {
    InferwireClient.Builder builder = InferwireClient.builder(connect.get("target").getAsString());
    if (has(connect, "tls")) {
      JsonElement tls = connect.get("tls");
      builder.tls(tls.isJsonObject() || tls.getAsBoolean());
      if (tls.isJsonObject()) {
        JsonObject files = tls.getAsJsonObject();
        if (has(files, "ca")) {
          builder.certificateAuthority(path(files, "ca"));
        }
        if (has(files, "cert")) {
          builder.clientCertificate(path(files, "cert"), path(files, "key"));
        }
        if (has(files, "server_name")) {
          builder.serverName(files.get("server_name").getAsString());
        }
      }
    }
    if (has(connect, "token")) {
      builder.token(connect.get("token").getAsString());
    }
    if (has(connect, "default_timeout_ms")) {
      builder.defaultTimeout(Duration.ofMillis(connect.get("default_timeout_ms").getAsLong()));
    }
    if (has(connect, "retry")) {
      builder.retry(connect.get("retry").getAsBoolean());
    }
    if (has(connect, "balance")) {
      builder.roundRobin(connect.get("balance").getAsBoolean());
    }
    return builder.build();
  }

  private static boolean has(JsonObject object, String name) {
    return object.has(name) && !object.get(name).isJsonNull();
  }

  private static Path path(JsonObject object, String name) {
    return Path.of(object.get(name).getAsString());
  }

  /** One call and what its caller sees. */
  private final class Call {
    final List<MessageLite> seen = new ArrayList<>();
    boolean hasLeftEarly;
    private final String method;
    private final byte[] request;
    private final InferwireClient client;
    /** Null: the default. */
    private final Duration timeout;

    private final long mostEvents;

    Call(JsonObject connect, JsonObject call) {
      method = call.get("method").getAsString();
      request = has(call, "request") ? Base64.getDecoder().decode(call.get("request").getAsString()) : new byte[0];
      timeout = has(call, "timeout_ms") ? Duration.ofMillis(call.get("timeout_ms").getAsLong()) : null;
      mostEvents = has(call, "cancel_after") ? call.get("cancel_after").getAsLong() : Long.MAX_VALUE;
      InferwireClient view = client(connect);
      if (timeout != null) {
        view = view.withTimeout(timeout);
      }
      if (has(call, "metadata")) {
        for (Map.Entry<String, JsonElement> entry : call.getAsJsonObject("metadata").entrySet()) {
          view = view.withMetadata(entry.getKey(), entry.getValue().getAsString());
        }
      }
      client = view;
    }

    void make() throws InvalidProtocolBufferException {
      switch (method) {
        case "Complete" -> seen.add(client.complete(CompleteRequest.parseFrom(request)));
        case "StreamComplete" -> read(client.stream(CompleteRequest.parseFrom(request)));
        case "GatherStream" -> gather(client.stream(CompleteRequest.parseFrom(request)));
        case "Embed" -> seen.add(client.embed(EmbedRequest.parseFrom(request)));
        case "CountTokens" -> seen.add(client.countTokens(CompleteRequest.parseFrom(request)));
        case "Tokenize" -> seen.add(client.tokenize(TokenizeRequest.parseFrom(request)));
        case "Detokenize" -> seen.add(client.detokenize(DetokenizeRequest.parseFrom(request)));
        case "ListModels" -> seen.add(client.listModels());
        case "GetModel" -> seen.add(client.getModel(GetModelRequest.parseFrom(request).getModel()));
        case "WatchModels" -> read(client.watchModels());
        case "ListBackends" -> seen.add(client.listBackends());
        case "Health" -> seen.add(client.health());
        case "Load" -> seen.add(client.load(LoadRequest.parseFrom(request)));
        case "StreamLoad" -> read(client.streamLoad(LoadRequest.parseFrom(request)));
        case "Unload" -> seen.add(client.unload(UnloadRequest.parseFrom(request)));
        case "HealthCheck" -> checkHealth(HealthCheckRequest.parseFrom(request));
        case "HealthWatch" -> watchHealth(HealthCheckRequest.parseFrom(request));
        default -> throw new IllegalArgumentException("no such method: " + method);
      }
    }

    private void gather(CompletionStream stream) {
      seen.add(stream.gather());
    }

    private <E extends MessageLite> void read(EventStream<E> stream) {
      try (stream) {
        readSome(stream);
      }
    }

    private void readSome(Iterator<? extends MessageLite> events) {
      while (seen.size() < mostEvents) {
        if (!events.hasNext()) {
          return;
        }
        seen.add(events.next());
      }
      hasLeftEarly = true;
    }

    private void checkHealth(HealthCheckRequest request) {
      try {
        seen.add(health().check(request));
      } catch (StatusRuntimeException failure) {
        throw InferwireException.of(failure);
      }
    }

    private void watchHealth(HealthCheckRequest request) {
      Context.CancellableContext scope = Context.current().withCancellation();
      try {
        scope.run(() -> readSome(health().watch(request)));
      } catch (StatusRuntimeException failure) {
        throw InferwireException.of(failure);
      } finally {
        scope.cancel(null);
      }
    }

    private HealthBlockingStub health() {
      HealthBlockingStub stub = HealthGrpc.newBlockingStub(client.channel());
      return timeout == null ? stub : stub.withDeadlineAfter(timeout.toMillis(), TimeUnit.MILLISECONDS);
    }
  }
}
