package dev.inferwire;

import com.google.protobuf.ByteString;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.Completion;
import dev.inferwire.v1.Message;
import dev.inferwire.v1.Part;
import dev.inferwire.v1.Reasoning;
import dev.inferwire.v1.ReasoningDelta;
import dev.inferwire.v1.Role;
import dev.inferwire.v1.StreamCompleteResponse;
import dev.inferwire.v1.TextDelta;
import dev.inferwire.v1.TokenLogprob;
import dev.inferwire.v1.ToolCall;
import dev.inferwire.v1.ToolCallDelta;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Takes the events of one stream in order and gives the answer that {@code complete} would have given.
 *
 * <p>Parts stand in the order of their first delta:
 *
 * <ul>
 *   <li>text extends the last part when that is text, else it begins one;
 *   <li>reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
 *   <li>a tool call is one part wherever its deltas stand, told apart by its index.
 * </ul>
 *
 * <p>Token ids and log probabilities concatenate over all events, those of the completion included. Events of an
 * unknown kind and progress leave no trace. One thread uses it.
 */
public final class Gatherer {
  private final CompleteResponse.Builder response = CompleteResponse.newBuilder();
  private final List<Gathered> parts = new ArrayList<>();
  private final Map<Integer, Call> calls = new HashMap<>();

  /** Begins with no events. */
  public Gatherer() {}

  /**
   * Reads {@code events} to their end and returns the answer.
   *
   * @param events the events of one stream in order
   * @return the whole answer
   * @throws IllegalArgumentException they end without a completion; a {@link CompletionStream} throws its own
   *     InferwireException before that
   */
  public static CompleteResponse gather(Iterable<StreamCompleteResponse> events) {
    Gatherer gatherer = new Gatherer();
    events.forEach(gatherer::add);
    CompleteResponse response = gatherer.response();
    if (!response.hasCompletion()) {
      throw new IllegalArgumentException(
          "the events end without a completion; the answer would not be whole");
    }
    return response;
  }

  /**
   * Takes the next event.
   *
   * @param event the next event of the stream
   */
  public void add(StreamCompleteResponse event) {
    switch (event.getEventCase()) {
      case STARTED -> response.setStarted(event.getStarted());
      case TEXT -> addText(event.getText());
      case REASONING -> addReasoning(event.getReasoning());
      case TOOL_CALL -> addToolCall(event.getToolCall());
      case COMPLETION -> {
        Completion completion = event.getCompletion();
        response.setCompletion(completion);
        addTokens(completion.getTokenIdsList(), completion.getLogprobsList());
      }
      case PROGRESS, EVENT_NOT_SET -> {}
    }
  }

  /**
   * Returns the answer so far.
   *
   * @return a new message; its completion is unset until that event came
   */
  public CompleteResponse response() {
    Message.Builder message = Message.newBuilder().setRole(Role.ROLE_ASSISTANT);
    parts.forEach(part -> message.addParts(part.build()));
    return response.clone().setMessage(message).build();
  }

  private void addText(TextDelta delta) {
    addTokens(delta.getTokenIdsList(), delta.getLogprobsList());
    if (delta.getText().isEmpty()) {
      return;
    }
    Text text = last() instanceof Text begun ? begun : begin(new Text());
    text.text.append(delta.getText());
  }

  private void addReasoning(ReasoningDelta delta) {
    addTokens(delta.getTokenIdsList(), delta.getLogprobsList());
    if (delta.getText().isEmpty() && delta.getSignature().isEmpty()) {
      return;
    }
    Thought thought =
        last() instanceof Thought begun && begun.signature.isEmpty() ? begun : begin(new Thought());
    thought.text.append(delta.getText());
    thought.signature = delta.getSignature();
  }

  private void addToolCall(ToolCallDelta delta) {
    addTokens(delta.getTokenIdsList(), delta.getLogprobsList());
    Call call = calls.computeIfAbsent(delta.getIndex(), index -> begin(new Call()));
    call.id = call.id.isEmpty() ? delta.getId() : call.id;
    call.name = call.name.isEmpty() ? delta.getName() : call.name;
    call.arguments.append(delta.getArguments());
    call.signature = call.signature.concat(delta.getSignature());
  }

  private void addTokens(List<Integer> tokenIds, List<TokenLogprob> logprobs) {
    response.addAllTokenIds(tokenIds).addAllLogprobs(logprobs);
  }

  private Gathered last() {
    return parts.isEmpty() ? null : parts.get(parts.size() - 1);
  }

  private <P extends Gathered> P begin(P part) {
    parts.add(part);
    return part;
  }

  @Override
  public String toString() {
    String state = response.hasCompletion() ? "completed" : response.hasStarted() ? "started" : "new";
    return "<Gatherer [%s | parts %d | token ids %d]>"
        .formatted(state, parts.size(), response.getTokenIdsCount());
  }

  /** A part that may still grow. */
  private interface Gathered {
    Part build();
  }

  private static final class Text implements Gathered {
    final StringBuilder text = new StringBuilder();

    @Override
    public Part build() {
      return Part.newBuilder().setText(text.toString()).build();
    }
  }

  private static final class Thought implements Gathered {
    final StringBuilder text = new StringBuilder();
    ByteString signature = ByteString.EMPTY;

    @Override
    public Part build() {
      Reasoning thought = Reasoning.newBuilder().setText(text.toString()).setSignature(signature).build();
      return Part.newBuilder().setReasoning(thought).build();
    }
  }

  private static final class Call implements Gathered {
    String id = "";
    String name = "";
    final StringBuilder arguments = new StringBuilder();
    ByteString signature = ByteString.EMPTY;

    @Override
    public Part build() {
      ToolCall call =
          ToolCall.newBuilder()
              .setId(id)
              .setName(name)
              .setArguments(arguments.toString())
              .setSignature(signature)
              .build();
      return Part.newBuilder().setToolCall(call).build();
    }
  }
}
