// What a stream's concatenation is. Pure: no server.

#include "inferwire/gather.h"

#include <gtest/gtest.h>

#include <random>

#include "messages.h"

namespace inferwire::tests {
namespace {

std::vector<v1::Part> parts_of(std::vector<Event> deltas) {
  deltas.insert(deltas.begin(), started());
  deltas.push_back(completion());
  const v1::CompleteResponse response = gather(deltas);
  return {response.message().parts().begin(), response.message().parts().end()};
}

v1::Part text_part(const std::string& whole) {
  v1::Part part;
  part.set_text(whole);
  return part;
}

v1::Part thought_part(const std::string& whole, const std::string& signature = {}) {
  v1::Part part;
  part.mutable_reasoning()->set_text(whole);
  part.mutable_reasoning()->set_signature(signature);
  return part;
}

v1::Part call_part(const std::string& id, const std::string& name, const std::string& arguments) {
  v1::Part part;
  part.mutable_tool_call()->set_id(id);
  part.mutable_tool_call()->set_name(name);
  part.mutable_tool_call()->set_arguments(arguments);
  return part;
}

using Parts = std::vector<v1::Part>;

// A delta extends the last part when that is of its kind, else it begins a new one.
TEST(Gather, RunsAreOnePart) {
  EXPECT_EQ((Parts{thought_part("hm"), text_part("ab"), thought_part("so"), text_part("c")}),
            parts_of({reasoning("h"), reasoning("m"), text("a"), text("b"), reasoning("so"), text("c")}));
}

// A call stands where its first delta stood, and gets all its arguments, whatever comes between.
TEST(Gather, AToolCallIsOnePart) {
  EXPECT_EQ((Parts{call_part("c0", "add", "{\"a\":1}"), text_part("and"), call_part("c1", "sub", "{}")}),
            parts_of({tool_call(0, "", "c0", "add"), tool_call(0, "{\"a\""), text("and"),
                      tool_call(1, "{}", "c1", "sub"), tool_call(0, ":1}")}));
}

// Two signed thoughts in a row stay two: each signature is valid for its own text only.
TEST(Gather, ASignatureEndsItsThought) {
  EXPECT_EQ((Parts{thought_part("ab", "S1"), thought_part("c", "S2")}),
            parts_of({reasoning("a"), reasoning("b"), reasoning("", "S1"), reasoning("c", "S2")}));
}

// A signature without text is a thought that the provider hides.
TEST(Gather, AHiddenThoughtIsAPart) {
  EXPECT_EQ((Parts{text_part("a"), thought_part("", "S")}), parts_of({text("a"), reasoning("", "S")}));
}

// max_tokens 0 answers nothing, and that is a message of the model without parts.
TEST(Gather, AnEmptyAnswerHasNoParts) {
  const v1::CompleteResponse response = gather(std::vector{started(), completion()});
  EXPECT_TRUE(response.has_message());
  EXPECT_EQ(v1::ROLE_ASSISTANT, response.message().role());
  EXPECT_EQ(0, response.message().parts_size());
}

// They are about the way, not the answer; they do not even end a run.
TEST(Gather, ProgressAndUnknownEventsLeaveNoTrace) {
  Event progress;
  progress.mutable_progress()->mutable_queue()->set_position(1);
  EXPECT_EQ(Parts{text_part("ab")}, parts_of({progress, text("a"), unknown_event(), text("b")}));
}

// A delta that carries token ids alone adds them, and begins no part.
TEST(Gather, TokensWithoutTextCount) {
  Event bare;
  bare.mutable_text()->add_token_ids(1);
  bare.mutable_text()->add_token_ids(2);
  const v1::CompleteResponse response = gather(std::vector{started(), bare, completion()});
  EXPECT_EQ(2, response.token_ids_size());
  EXPECT_EQ(0, response.message().parts_size());
}

// A range that ends early gives no answer that could be taken for whole.
TEST(Gather, WantsACompletion) { EXPECT_THROW(gather(std::vector{started(), text("a")}), std::invalid_argument); }

// `response` may be asked at any time; without the completion it says so by its absence.
TEST(Gather, TellsTheAnswerSoFar) {
  Gatherer gatherer;
  EXPECT_EQ("<Gatherer [new | parts 0 | token ids 0]>", gatherer.describe());
  gatherer.add(started());
  gatherer.add(text("a"));
  EXPECT_EQ("<Gatherer [started | parts 1 | token ids 0]>", gatherer.describe());
  const v1::CompleteResponse early = gatherer.response();
  EXPECT_FALSE(early.has_completion());
  gatherer.add(text("b"));
  gatherer.add(completion());
  EXPECT_EQ("<Gatherer [completed | parts 1 | token ids 0]>", gatherer.describe());
  EXPECT_EQ("a", early.message().parts(0).text());
  EXPECT_EQ("ab", gatherer.response().message().parts(0).text());
}

/// One delta of any kind, with token ids and their log probabilities.
Event any_delta(std::mt19937& draw) {
  const auto below = [&draw](unsigned bound) { return draw() % bound; };
  const std::vector<std::string> pieces = {"", "a", "b ", "é", "☃"};
  const std::string piece = pieces[below(5)];
  const auto add_tokens = [&](auto& delta) {
    for (unsigned count = below(4); count > 0; --count) {
      delta.add_token_ids(static_cast<std::uint32_t>(draw()));
      delta.add_logprobs()->set_token_id(delta.token_ids(delta.token_ids_size() - 1));
    }
  };
  Event event;
  switch (below(3)) {
    case 0:
      event = text(piece);
      add_tokens(*event.mutable_text());
      break;
    case 1:
      event = reasoning(piece, below(3) == 0 ? "sig" : "");
      add_tokens(*event.mutable_reasoning());
      break;
    default:
      event = tool_call(below(3), piece);
      event.mutable_tool_call()->set_signature(below(3) == 0 ? "sig" : "");
      add_tokens(*event.mutable_tool_call());
  }
  return event;
}

/// Of each kind, what deltas or parts join to.
struct Joined {
  std::string text, thoughts, thought_signatures;
  std::map<int, std::string> arguments, call_signatures;
  std::vector<std::uint32_t> token_ids, logprob_ids;

  bool operator==(const Joined& other) const {
    return std::tie(text, thoughts, thought_signatures, arguments, call_signatures, token_ids, logprob_ids) ==
           std::tie(other.text, other.thoughts, other.thought_signatures, other.arguments, other.call_signatures,
                    other.token_ids, other.logprob_ids);
  }
};

Joined join(const std::vector<Event>& events) {
  Joined joined;
  // Calls are told apart by their index, and numbered by their first delta.
  std::map<std::uint32_t, int> places;
  const auto join_tokens = [&joined](const auto& delta) {
    joined.token_ids.insert(joined.token_ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    for (const v1::TokenLogprob& logprob : delta.logprobs()) joined.logprob_ids.push_back(logprob.token_id());
  };
  for (const Event& event : events) {
    joined.text += event.text().text();
    joined.thoughts += event.reasoning().text();
    joined.thought_signatures += event.reasoning().signature();
    if (event.has_tool_call()) {
      const int place = places.try_emplace(event.tool_call().index(), static_cast<int>(places.size())).first->second;
      joined.arguments[place] += event.tool_call().arguments();
      joined.call_signatures[place] += event.tool_call().signature();
    }
    join_tokens(event.text());
    join_tokens(event.reasoning());
    join_tokens(event.tool_call());
    join_tokens(event.completion());
  }
  return joined;
}

Joined join(const v1::CompleteResponse& response) {
  Joined joined;
  for (const v1::Part& part : response.message().parts()) {
    joined.text += part.text();
    joined.thoughts += part.reasoning().text();
    joined.thought_signatures += part.reasoning().signature();
    if (part.has_tool_call()) {
      const int place = static_cast<int>(joined.arguments.size());
      joined.arguments[place] = part.tool_call().arguments();
      joined.call_signatures[place] = part.tool_call().signature();
    }
  }
  joined.token_ids = {response.token_ids().begin(), response.token_ids().end()};
  for (const v1::TokenLogprob& logprob : response.logprobs()) joined.logprob_ids.push_back(logprob.token_id());
  return joined;
}

class GatherAnything : public testing::TestWithParam<unsigned> {
 protected:
  std::vector<Event> events() {
    std::vector<Event> events = {started()};
    for (unsigned count = draw() % 13; count > 0; --count) events.push_back(any_delta(draw));
    events.push_back(completion());
    events.back().mutable_completion()->add_token_ids(static_cast<std::uint32_t>(draw()));
    return events;
  }

  std::mt19937 draw{GetParam()};
};

// Of each kind, the parts joined are the deltas joined: nothing is lost, doubled or put out of order.
TEST_P(GatherAnything, Concatenates) {
  for (int example = 0; example < 100; ++example) {
    const std::vector<Event> all = events();
    const v1::CompleteResponse response = gather(all);
    EXPECT_TRUE(join(all) == join(response)) << response.ShortDebugString();
    EXPECT_EQ(all.front().started(), response.started());
    EXPECT_EQ(all.back().completion(), response.completion());
  }
}

// Two neighbours of one kind would have been one, unless a signature stands between them.
TEST_P(GatherAnything, LeavesNoPartEmptyOrMergeable) {
  for (int example = 0; example < 100; ++example) {
    const v1::CompleteResponse response = gather(events());
    const v1::Part* left = nullptr;
    for (const v1::Part& part : response.message().parts()) {
      EXPECT_TRUE(!part.text().empty() || !part.reasoning().text().empty() || !part.reasoning().signature().empty() ||
                  part.has_tool_call());
      if (left != nullptr) {
        EXPECT_FALSE(left->has_text() && part.has_text());
        EXPECT_TRUE(!left->has_reasoning() || !part.has_reasoning() || !left->reasoning().signature().empty());
      }
      left = &part;
    }
  }
}

// A text delta cut in two gives the same answer; so a proxy may merge and split.
TEST_P(GatherAnything, DoesNotCareWhereAnEventEnds) {
  for (int example = 0; example < 100; ++example) {
    const std::vector<Event> all = events();
    std::vector<Event> cut;
    for (const Event& event : all) {
      cut.push_back(event);
      if (!event.has_text() || event.text().text().empty()) continue;
      cut.back() = text(event.text().text().substr(0, 1));
      cut.push_back(event);
      cut.back().mutable_text()->set_text(event.text().text().substr(1));
    }
    EXPECT_EQ(gather(all), gather(cut));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, GatherAnything, testing::Range(0u, 10u));

}  // namespace
}  // namespace inferwire::tests
