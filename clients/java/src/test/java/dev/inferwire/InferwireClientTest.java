package dev.inferwire;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import dev.inferwire.v1.Chat;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.DetokenizeRequest;
import dev.inferwire.v1.EmbedRequest;
import dev.inferwire.v1.ErrorReason;
import dev.inferwire.v1.FinishReason;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.LocalSource;
import dev.inferwire.v1.Message;
import dev.inferwire.v1.Model;
import dev.inferwire.v1.ModelSource;
import dev.inferwire.v1.OutputOptions;
import dev.inferwire.v1.Part;
import dev.inferwire.v1.Role;
import dev.inferwire.v1.Sampling;
import dev.inferwire.v1.Stopping;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.StreamCompleteResponse.EventCase;
import dev.inferwire.v1.StreamLoadResponse;
import dev.inferwire.v1.TokenizeRequest;
import dev.inferwire.v1.TokenizeResponse;
import dev.inferwire.v1.ToolCall;
import dev.inferwire.v1.UnloadRequest;
import dev.inferwire.v1.WatchModelsResponse;
import io.grpc.Status;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** The client against the real server. The prompt of its scripted backend is the script of the answer. */
@Timeout(60)
class InferwireClientTest {
  private static final String TOOL_CALLS =
      """
      {"events": [
        {"reasoning": "hm"},
        {"text": "Let me see."},
        {"tool_call": {"index": 0, "id": "a", "name": "add", "arguments": "{\\"x\\""}},
        {"tool_call": {"index": 0, "arguments": ": 1}"}},
        {"tool_call": {"index": 1, "id": "b", "name": "sub", "arguments": "{}"}}
      ]}
      """;

  private static ServerProcess server;
  private static InferwireClient client;

  @BeforeAll
  static void start() {
    server = new ServerProcess();
    client = InferwireClient.connect(server.address());
  }

  @AfterAll
  static void stop() {
    if (server != null) {
      client.close();
      server.close();
    }
  }

  /** The unary answer has all that the stream would say. */
  @Test
  void completes() {
    CompleteResponse response = client.complete(script("{'events': [{'text': 'Hel'}, {'text': 'lo'}]}"));
    assertEquals(Role.ROLE_ASSISTANT, response.getMessage().getRole());
    assertEquals("Hello", response.getMessage().getParts(0).getText());
    assertEquals(FinishReason.FINISH_REASON_STOP, response.getCompletion().getFinishReason());
    assertEquals(2, response.getCompletion().getUsage().getCompletionTokens());
    assertEquals("scripted", response.getStarted().getModel());
  }

  /** A chat goes the same way as a prompt. */
  @Test
  void completesAChat() {
    Message user =
        Message.newBuilder()
            .setRole(Role.ROLE_USER)
            .addParts(Part.newBuilder().setText("{\"events\": [{\"text\": \"Hello\"}]}"))
            .build();
    CompleteRequest request =
        CompleteRequest.newBuilder().setChat(Chat.newBuilder().addMessages(user)).build();
    assertEquals("Hello", client.stream(request).text().collect(Collectors.joining()));
  }

  /** {@code started} first, the deltas in order, {@code completion} last. */
  @Test
  void streamsInOrder() {
    List<EventCase> cases = new ArrayList<>();
    StringBuilder text = new StringBuilder();
    CompleteRequest request =
        script("{'events': [{'reasoning': 'r'}, {'text': 'a'}, {'text': 'b'}]}").toBuilder()
            .setOutput(OutputOptions.newBuilder().setProgress(true))
            .build();
    try (CompletionStream stream = client.stream(request)) {
      for (StreamCompleteResponse event : stream) {
        cases.add(event.getEventCase());
        text.append(event.getText().getText());
      }
      assertEquals("scripted", stream.started().orElseThrow().getModel());
    }
    assertEquals(
        List.of(
            EventCase.STARTED,
            EventCase.PROGRESS,
            EventCase.REASONING,
            EventCase.TEXT,
            EventCase.TEXT,
            EventCase.COMPLETION),
        cases);
    assertEquals("ab", text.toString());
  }

  /** The gathered stream is what Complete says, but for the time that it took. */
  @Test
  void gatherEqualsUnary() {
    for (CompleteRequest request :
        List.of(
            prompt("five words of any kind").setSampling(Sampling.newBuilder().setSeed(7)).build(),
            prompt(TOOL_CALLS)
                .setOutput(OutputOptions.newBuilder().setMessage(true))
                .setSampling(Sampling.newBuilder().setSeed(7))
                .build())) {
      InferwireClient named = client.withRequestId("the-same");
      assertEquals(
          withoutTiming(named.complete(request)), withoutTiming(named.stream(request).gather()));
    }
  }

  /** Fragments of a call join by its index. */
  @Test
  void gathersToolCalls() {
    CompleteResponse response = client.stream(prompt(TOOL_CALLS).build()).gather();
    List<Part> parts = response.getMessage().getPartsList();
    assertEquals(4, parts.size());
    assertEquals("hm", parts.get(0).getReasoning().getText());
    assertEquals("Let me see.", parts.get(1).getText());
    assertEquals(toolCall("a", "add", "{\"x\": 1}"), parts.get(2).getToolCall());
    assertEquals(toolCall("b", "sub", "{}"), parts.get(3).getToolCall());
    assertEquals(FinishReason.FINISH_REASON_TOOL_CALLS, response.getCompletion().getFinishReason());
  }

  /** The answer ends before the stop text, and says which it was. */
  @Test
  void stopsAtAStopString() {
    CompleteRequest request =
        script("{'events': [{'text': 'one ST'}, {'text': 'OP two'}]}").toBuilder()
            .setStopping(Stopping.newBuilder().addStop("STOP"))
            .build();
    try (CompletionStream stream = client.stream(request)) {
      assertEquals("one ", stream.text().collect(Collectors.joining()));
      assertEquals("STOP", stream.completion().orElseThrow().getStopString());
    }
  }

  /** Zero is not unset: a seed of 0 is told back, and max_tokens 0 answers nothing. */
  @Test
  void zeroIsSaid() {
    CompleteRequest request =
        prompt("some words")
            .setSampling(Sampling.newBuilder().setSeed(0).setTemperature(0))
            .setStopping(Stopping.newBuilder().setMaxTokens(0))
            .build();
    CompleteResponse zero = client.complete(request);
    assertTrue(zero.getStarted().getSampling().hasSeed());
    assertEquals(0, zero.getStarted().getSampling().getSeed());
    assertTrue(zero.getStarted().getSampling().hasTemperature());
    assertEquals(FinishReason.FINISH_REASON_LENGTH, zero.getCompletion().getFinishReason());
    assertEquals(0, zero.getMessage().getPartsCount());
    CompleteResponse unset = client.complete(prompt("some words").build());
    assertFalse(unset.getStarted().getSampling().hasTemperature());
    assertEquals(2, unset.getCompletion().getUsage().getCompletionTokens());
  }

  /** The caller's request id is told back. */
  @Test
  void tellsTheRequestIdBack() {
    CompleteResponse response = client.withRequestId("mine-1").complete(prompt("Hi").build());
    assertEquals("mine-1", response.getStarted().getId());
  }

  /** A refusal before the first event says all: code, reason, delay, metadata. */
  @Test
  void failsBeforeTheFirstEvent() {
    CompleteRequest request =
        script(
            "{'events': [{'error': {'reason': 'QUEUE_FULL', 'message': 'later', 'retry_delay_seconds': 0.01,"
                + " 'metadata': {'model': 'scripted', 'queueCapacity': '64'}}}]}");
    for (InferwireException error :
        List.of(
            failure(() -> client.stream(request).gather()), failure(() -> client.complete(request)))) {
      assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
      assertEquals(Optional.of(ErrorReason.ERROR_REASON_QUEUE_FULL), error.knownReason());
      assertEquals(Optional.of(Duration.ofMillis(10)), error.retryDelay());
      assertEquals("64", error.metadata().get("queueCapacity"));
    }
  }

  /** A failure in mid-stream comes after the deltas, as ABORTED, and says how many tokens were sent. */
  @Test
  void failsInMidStream() {
    CompleteRequest request =
        script("{'events': [{'text': 'a', 'repeat': 3}, {'error': {'reason': 'ENGINE_CRASHED'}}]}");
    StringBuilder text = new StringBuilder();
    InferwireException error = failure(() -> client.stream(request).text().forEach(text::append));
    assertEquals("aaa", text.toString());
    assertEquals(Status.Code.ABORTED, error.code());
    assertEquals("ENGINE_CRASHED", error.reason());
    assertEquals("3", error.metadata().get("tokensEmitted"));
  }

  /** The request's fault names its field. */
  @Test
  void namesTheFieldAtFault() {
    InferwireException error =
        failure(() -> client.complete(prompt("Hi").setSampling(Sampling.newBuilder().setTopP(2)).build()));
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals("INVALID_REQUEST", error.reason());
    assertEquals("sampling.top_p", error.violations().get(0).field());
  }

  /** A model that is not there is named. */
  @Test
  void namesTheModelThatIsNotThere() {
    InferwireException error = failure(() -> client.getModel("nope"));
    assertEquals(Optional.of(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND), error.knownReason());
    assertEquals("nope", error.resource());
  }

  /** The call's deadline ends the answer. */
  @Test
  void keepsTheDeadline() {
    CompleteRequest request = script("{'events': [{'text': 'a'}, {'delay_seconds': 50}]}");
    InferwireClient hasty = client.withTimeout(Duration.ofMillis(300));
    for (InferwireException error :
        List.of(failure(() -> hasty.stream(request).gather()), failure(() -> hasty.complete(request)))) {
      assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    }
    awaitIdle();
  }

  /** Who leaves after some events frees what the request held. */
  @Test
  void leavingEarlyFreesTheServer() {
    CompleteRequest request = script("{'events': [{'text': 'a', 'repeat': 10}, {'delay_seconds': 50}]}");
    awaitIdle();
    try (CompletionStream stream = client.stream(request)) {
      for (int seen = 0; seen < 5; seen++) {
        stream.next();
      }
      assertEquals(1, client.health().getModels(0).getStreamsInFlight());
    }
    awaitIdle();
  }

  /** An answer of many mebibytes comes whole. */
  @Test
  void readsALargeMessage() {
    String piece = "0123456789abcdef".repeat(1024);
    CompleteRequest request = script("{'events': [{'text': '" + piece + "', 'repeat': 1024}]}");
    assertEquals(16 << 20, client.complete(request).getMessage().getParts(0).getText().length());
  }

  /** The scripted backend has tokens, and no vectors. */
  @Test
  void asksForTokensAndVectors() {
    TokenizeResponse tokens = client.tokenize(TokenizeRequest.newBuilder().setText("é").build());
    assertEquals(List.of(0xc3, 0xa9), tokens.getTokenIdsList());
    ByteString data =
        client.detokenize(DetokenizeRequest.newBuilder().addTokenIds(0xc3).build()).getData();
    assertEquals(ByteString.copyFrom(new byte[] {(byte) 0xc3}), data);
    assertEquals(3, client.countTokens(prompt("three small words").build()).getTokens());
    InferwireException error = failure(() -> client.embed(EmbedRequest.newBuilder().addInputs("a").build()));
    assertEquals("UNSUPPORTED_BY_BACKEND", error.reason());
    assertEquals(Map.of("model", "scripted", "backend", "scripted"), error.metadata());
  }

  /** The questions about models and the server. */
  @Test
  void asksAboutModels() {
    assertEquals(
        List.of("scripted"), client.listModels().getModelsList().stream().map(Model::getName).toList());
    assertEquals("scripted", client.getModel("scripted").getModel().getName());
    assertEquals("scripted", client.listBackends().getBackends(0).getId());
    assertTrue(client.health().getReady());
    try (EventStream<WatchModelsResponse> models = client.watchModels()) {
      assertEquals("scripted", models.next().getModels(0).getName());
    }
  }

  /** A load that cannot be is refused by both doors; to unload what is not there is no failure. */
  @Test
  void loadsAndUnloads() {
    LoadRequest request =
        LoadRequest.newBuilder()
            .setModel("new")
            .setSource(ModelSource.newBuilder().setLocal(LocalSource.newBuilder().setPath("../a.gguf")))
            .build();
    try (EventStream<StreamLoadResponse> load = client.streamLoad(request)) {
      InferwireException streamed = failure(load::hasNext);
      InferwireException error = failure(() -> client.load(request));
      assertEquals(error.getMessage(), streamed.getMessage());
      assertEquals("MODEL_PATH_NOT_ALLOWED", error.reason());
    }
    assertFalse(client.unload(UnloadRequest.newBuilder().setModel("new").build()).getWasLoaded());
  }

  /** The connection serves stubs of other services. */
  @Test
  void servesOtherStubs() {
    HealthGrpc.HealthBlockingStub health = HealthGrpc.newBlockingStub(client.channel());
    assertEquals(
        ServingStatus.SERVING, health.check(HealthCheckRequest.getDefaultInstance()).getStatus());
    InferwireException error =
        failure(
            () -> {
              try {
                health.check(HealthCheckRequest.newBuilder().setService("nope").build());
              } catch (RuntimeException failure) {
                throw InferwireException.of(failure);
              }
            });
    assertEquals(Status.Code.NOT_FOUND, error.code());
  }

  private static CompleteRequest.Builder prompt(String prompt) {
    return CompleteRequest.newBuilder().setPrompt(prompt);
  }

  /** Returns the request of a script in JSON, with single quotes for double ones. */
  private static CompleteRequest script(String json) {
    return prompt(json.replace('\'', '"')).build();
  }

  private static ToolCall toolCall(String id, String name, String arguments) {
    return ToolCall.newBuilder().setId(id).setName(name).setArguments(arguments).build();
  }

  private static CompleteResponse withoutTiming(CompleteResponse response) {
    CompleteResponse.Builder builder = response.toBuilder();
    builder.getCompletionBuilder().clearTiming();
    return builder.build();
  }

  private static InferwireException failure(Runnable call) {
    return assertThrows(InferwireException.class, call::run);
  }

  /** Asks until no stream is in flight; the test's own time limit ends it. */
  private static void awaitIdle() {
    while (client.health().getModels(0).getStreamsInFlight() > 0) {
      Thread.onSpinWait();
    }
  }
}
