package dev.inferwire;

import static dev.inferwire.FakeServer.completion;
import static dev.inferwire.FakeServer.reasoning;
import static dev.inferwire.FakeServer.started;
import static dev.inferwire.FakeServer.text;
import static dev.inferwire.FakeServer.unknown;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.Completion;
import dev.inferwire.v1.Message;
import dev.inferwire.v1.Part;
import dev.inferwire.v1.Progress;
import dev.inferwire.v1.QueueProgress;
import dev.inferwire.v1.Reasoning;
import dev.inferwire.v1.ReasoningDelta;
import dev.inferwire.v1.Role;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.TextDelta;
import dev.inferwire.v1.TokenLogprob;
import dev.inferwire.v1.ToolCall;
import dev.inferwire.v1.ToolCallDelta;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What a stream's concatenation is. No server. */
class GathererTest {
  /** A delta extends the last part when that is of its kind, else it begins a new one. */
  @Test
  void runsAreOnePart() {
    assertEquals(
        List.of(thoughtPart("hm", ""), textPart("ab"), thoughtPart("so", ""), textPart("c")),
        partsOf(reasoning("h"), reasoning("m"), text("a"), text("b"), reasoning("so"), text("c")));
  }

  /** A call stands where its first delta stood, and gets all its arguments, whatever comes between. */
  @Test
  void aToolCallIsOnePart() {
    assertEquals(
        List.of(callPart("c0", "add", "{\"a\":1}", "ST"), textPart("and"), callPart("c1", "sub", "{}", "")),
        partsOf(
            call(0, "c0", "add", "", "S"),
            call(0, "", "", "{\"a\"", ""),
            text("and"),
            call(1, "c1", "sub", "{}", ""),
            call(0, "", "", ":1}", "T")));
  }

  /** Two signed thoughts in a row stay two: each signature is valid for its own text only. */
  @Test
  void aSignatureEndsItsThought() {
    assertEquals(
        List.of(thoughtPart("ab", "S1"), thoughtPart("c", "S2")),
        partsOf(reasoning("a"), reasoning("b"), signed("", "S1"), signed("c", "S2")));
  }

  /** A signature without text is a thought that the provider hides. */
  @Test
  void aHiddenThoughtIsAPart() {
    assertEquals(List.of(textPart("a"), thoughtPart("", "S")), partsOf(text("a"), signed("", "S")));
  }

  /** max_tokens 0 answers nothing, and that is a message of the model without parts. */
  @Test
  void anEmptyAnswerHasNoParts() {
    CompleteResponse response = Gatherer.gather(List.of(started(), completion()));
    assertEquals(Message.newBuilder().setRole(Role.ROLE_ASSISTANT).build(), response.getMessage());
  }

  /** They are about the way, not the answer; they do not even end a run. */
  @Test
  void progressAndUnknownEventsLeaveNoTrace() {
    StreamCompleteResponse progress =
        StreamCompleteResponse.newBuilder()
            .setProgress(Progress.newBuilder().setQueue(QueueProgress.newBuilder().setPosition(1)))
            .build();
    assertEquals(List.of(textPart("ab")), partsOf(progress, text("a"), unknown(), text("b")));
  }

  /** Token ids and log probabilities join over all events; a delta of tokens alone begins no part. */
  @Test
  void tokensConcatenate() {
    StreamCompleteResponse bare =
        StreamCompleteResponse.newBuilder()
            .setText(TextDelta.newBuilder().addTokenIds(1).addLogprobs(logprob(1)))
            .build();
    StreamCompleteResponse call =
        StreamCompleteResponse.newBuilder()
            .setToolCall(ToolCallDelta.newBuilder().setName("f").addTokenIds(2).addLogprobs(logprob(2)))
            .build();
    StreamCompleteResponse last =
        StreamCompleteResponse.newBuilder()
            .setCompletion(Completion.newBuilder().addTokenIds(3).addLogprobs(logprob(3)))
            .build();
    CompleteResponse response = Gatherer.gather(List.of(started(), bare, call, last));
    assertEquals(List.of(1, 2, 3), response.getTokenIdsList());
    assertEquals(List.of(logprob(1), logprob(2), logprob(3)), response.getLogprobsList());
    assertEquals(List.of(callPart("", "f", "", "")), response.getMessage().getPartsList());
  }

  /** Events that end early give no answer that could be taken for whole. */
  @Test
  void withoutACompletionThereIsNoAnswer() {
    assertThrows(
        IllegalArgumentException.class, () -> Gatherer.gather(List.of(started(), text("a"))));
  }

  /** The answer may be asked for at any time; without the completion it says so by its absence. */
  @Test
  void tellsTheAnswerSoFar() {
    Gatherer gatherer = new Gatherer();
    assertEquals("<Gatherer [new | parts 0 | token ids 0]>", gatherer.toString());
    gatherer.add(started());
    gatherer.add(text("a"));
    assertEquals("<Gatherer [started | parts 1 | token ids 0]>", gatherer.toString());
    CompleteResponse early = gatherer.response();
    assertFalse(early.hasCompletion());
    gatherer.add(text("b"));
    gatherer.add(completion());
    assertEquals("<Gatherer [completed | parts 1 | token ids 0]>", gatherer.toString());
    assertEquals("a", early.getMessage().getParts(0).getText());
    assertEquals("ab", gatherer.response().getMessage().getParts(0).getText());
    assertEquals(gatherer.response(), gatherer.response());
  }

  private static List<Part> partsOf(StreamCompleteResponse... deltas) {
    List<StreamCompleteResponse> events = new ArrayList<>(List.of(deltas));
    events.add(0, started());
    events.add(completion());
    return Gatherer.gather(events).getMessage().getPartsList();
  }

  private static StreamCompleteResponse signed(String text, String signature) {
    ReasoningDelta delta =
        ReasoningDelta.newBuilder().setText(text).setSignature(ByteString.copyFromUtf8(signature)).build();
    return StreamCompleteResponse.newBuilder().setReasoning(delta).build();
  }

  private static StreamCompleteResponse call(
      int index, String id, String name, String arguments, String signature) {
    ToolCallDelta delta =
        ToolCallDelta.newBuilder()
            .setIndex(index)
            .setId(id)
            .setName(name)
            .setArguments(arguments)
            .setSignature(ByteString.copyFromUtf8(signature))
            .build();
    return StreamCompleteResponse.newBuilder().setToolCall(delta).build();
  }

  private static TokenLogprob logprob(int tokenId) {
    return TokenLogprob.newBuilder().setTokenId(tokenId).setLogprob(-1).build();
  }

  private static Part textPart(String text) {
    return Part.newBuilder().setText(text).build();
  }

  private static Part thoughtPart(String text, String signature) {
    Reasoning thought =
        Reasoning.newBuilder().setText(text).setSignature(ByteString.copyFromUtf8(signature)).build();
    return Part.newBuilder().setReasoning(thought).build();
  }

  private static Part callPart(String id, String name, String arguments, String signature) {
    ToolCall call =
        ToolCall.newBuilder()
            .setId(id)
            .setName(name)
            .setArguments(arguments)
            .setSignature(ByteString.copyFromUtf8(signature))
            .build();
    return Part.newBuilder().setToolCall(call).build();
  }
}
