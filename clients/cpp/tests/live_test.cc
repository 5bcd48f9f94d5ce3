// The client against a real server and its scripted backend.

#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "inferwire/client.h"
#include "live.h"
#include "messages.h"

namespace inferwire::tests {
namespace {

using std::chrono::milliseconds;

class Live : public testing::Test {
 protected:
  static void SetUpTestSuite() { server = std::make_unique<LiveServer>(); }
  static void TearDownTestSuite() { server.reset(); }

  /// How many streams the server holds.
  unsigned streams_in_flight() const { return client.health().models(0).streams_in_flight(); }

  static std::unique_ptr<LiveServer> server;
  const Client client = connect(server->address());
};

std::unique_ptr<LiveServer> Live::server;

Error failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(grpc::StatusCode::OK, "", "nothing failed");
}

std::vector<Event::EventCase> arms_of(const std::vector<Event>& events) {
  std::vector<Event::EventCase> arms;
  for (const Event& event : events) arms.push_back(event.event_case());
  return arms;
}

/// Without what two calls cannot have in common.
v1::CompleteResponse comparable(v1::CompleteResponse response) {
  response.mutable_started()->clear_id();
  response.mutable_completion()->clear_timing();
  return response;
}

// The unary answer: the whole text, the finish reason and the counts.
TEST_F(Live, Complete) {
  const v1::CompleteResponse response =
      client.complete(prompt(R"({"events": [{"reasoning": "hm"}, {"text": "Hel"}, {"text": "lo"}]})"));
  ASSERT_EQ(2, response.message().parts_size());
  EXPECT_EQ("hm", response.message().parts(0).reasoning().text());
  EXPECT_EQ("Hello", response.message().parts(1).text());
  EXPECT_EQ(v1::FINISH_REASON_STOP, response.completion().finish_reason());
  EXPECT_EQ(3u, response.completion().usage().completion_tokens());
  EXPECT_EQ("scripted", response.started().model());
}

// `started` comes first, deltas in order, the completion last.
TEST_F(Live, AStreamIsInOrder) {
  CompletionStream stream = client.stream(prompt(R"({"events": [{"text": "a"}, {"reasoning": "b"}, {"text": "c"}]})"));
  const std::vector<Event> events{stream.begin(), stream.end()};
  EXPECT_EQ((std::vector{Event::kStarted, Event::kText, Event::kReasoning, Event::kText, Event::kCompletion}),
            arms_of(events));
  EXPECT_EQ("a", events[1].text().text());
  EXPECT_EQ("b", events[2].reasoning().text());
  EXPECT_EQ("c", events[3].text().text());
}

// The gathered stream is the unary answer, tool calls and characters of several bytes included.
TEST_F(Live, GatherEqualsUnary) {
  for (const std::string& script : {
           std::string("five words of any kind"),
           std::string(R"({"events": [{"reasoning": "hm"}, {"text": "月"}, {"text": "🙂"}, {"text": ""}]})"),
           std::string(R"({"events": [{"text": "a"}, {"tool_call": {"id": "c0", "name": "f", "arguments": "{\"a\""}},
                          {"tool_call": {"arguments": ":1}"}}, {"tool_call": {"index": 1, "id": "c1", "name": "g"}}]})"),
           std::string(R"({"events": []})"),
       }) {
    v1::CompleteRequest request = prompt(script);
    request.mutable_sampling()->set_seed(7);
    request.mutable_output()->set_message(true);
    const v1::CompleteResponse gathered = client.stream(request).gather();
    EXPECT_EQ(comparable(client.complete(request)), comparable(gathered));
    EXPECT_EQ(gathered.completion().message(), gathered.message());
  }
}

// A failure before the first event carries all that the server knows.
TEST_F(Live, AnErrorBeforeTheFirstEvent) {
  const std::string script = R"({"events": [{"error": {"reason": "QUEUE_FULL", "message": "full",
      "metadata": {"model": "scripted", "queueCapacity": "64"}, "retry_delay_seconds": 0.01}}]})";
  for (const Error& error : {failure_of([&] { client.stream(prompt(script)).gather(); }),
                             failure_of([&] { client.complete(prompt(script)); })}) {
    EXPECT_EQ(grpc::StatusCode::RESOURCE_EXHAUSTED, error.code);
    EXPECT_EQ(v1::ERROR_REASON_QUEUE_FULL, error.known_reason());
    EXPECT_EQ("full", error.message);
    EXPECT_EQ("64", error.metadata.at("queueCapacity"));
    EXPECT_EQ(milliseconds(10), error.retry_delay);
  }
}

// A failure after deltas is ABORTED and says how many tokens were sent; what came before it was seen.
TEST_F(Live, AnErrorInMidStream) {
  CompletionStream stream =
      client.stream(prompt(R"({"events": [{"text": "a"}, {"text": "b"}, {"error": {"reason": "ENGINE_CRASHED"}}]})"));
  EXPECT_TRUE(stream.next()->has_started());
  EXPECT_EQ("a", stream.next()->text().text());
  EXPECT_EQ("b", stream.next()->text().text());
  const Error error = failure_of([&] { stream.next(); });
  EXPECT_EQ(grpc::StatusCode::ABORTED, error.code);
  EXPECT_EQ(v1::ERROR_REASON_ENGINE_CRASHED, error.known_reason());
  EXPECT_EQ("2", error.metadata.at("tokensEmitted"));
  EXPECT_EQ("<Stream [failed]>", stream.describe());
}

// A field that is refused is named.
TEST_F(Live, AViolationNamesItsField) {
  v1::CompleteRequest request = prompt("Hi");
  request.mutable_sampling()->set_top_p(2);
  const Error error = failure_of([&] { client.complete(request); });
  EXPECT_EQ(grpc::StatusCode::INVALID_ARGUMENT, error.code);
  EXPECT_EQ("INVALID_REQUEST", error.reason);
  ASSERT_EQ(1u, error.violations.size());
  EXPECT_EQ("sampling.top_p", error.violations[0].field);
}

// A stop text ends the answer and is told.
TEST_F(Live, AStopString) {
  v1::CompleteRequest request = prompt(R"({"events": [{"text": "one E"}, {"text": "ND two"}]})");
  request.mutable_stopping()->add_stop("END");
  const v1::CompleteResponse response = client.stream(request).gather();
  EXPECT_EQ("one ", response.message().parts(0).text());
  EXPECT_EQ(v1::FINISH_REASON_STOP_STRING, response.completion().finish_reason());
  EXPECT_EQ("END", response.completion().stop_string());
}

// A tool call comes in fragments; its id and name come once.
TEST_F(Live, ToolCallFragments) {
  CompletionStream stream = client.stream(prompt(
      R"({"events": [{"tool_call": {"id": "c0", "name": "add", "arguments": "{\"a\""}}, {"tool_call": {"arguments": ":1}"}}]})"));
  Gatherer gatherer;
  std::vector<std::string> ids, fragments;
  for (const Event& event : stream) {
    gatherer.add(event);
    if (!event.has_tool_call()) continue;
    ids.push_back(event.tool_call().id());
    fragments.push_back(event.tool_call().arguments());
  }
  EXPECT_EQ((std::vector<std::string>{"c0", ""}), ids);
  EXPECT_EQ((std::vector<std::string>{"{\"a\"", ":1}"}), fragments);
  ASSERT_EQ(1, gatherer.response().message().parts_size());
  EXPECT_EQ("{\"a\":1}", gatherer.response().message().parts(0).tool_call().arguments());
  EXPECT_EQ(v1::FINISH_REASON_TOOL_CALLS, stream.completion()->finish_reason());
}

// The call's own deadline is DEADLINE_EXCEEDED; the request's time limit is an answer.
TEST_F(Live, DeadlineAndTimeLimit) {
  const std::string script = R"({"events": [{"text": "a"}, {"delay_seconds": 60}, {"text": "b"}]})";
  CallOptions options;
  options.timeout = milliseconds(200);
  EXPECT_EQ(grpc::StatusCode::DEADLINE_EXCEEDED,
            failure_of([&] { client.stream(prompt(script), options).gather(); }).code);
  EXPECT_EQ(grpc::StatusCode::DEADLINE_EXCEEDED, failure_of([&] { client.complete(prompt(script), options); }).code);
  v1::CompleteRequest request = prompt(script);
  request.mutable_stopping()->mutable_time_limit()->set_nanos(50'000'000);
  const v1::CompleteResponse response = client.complete(request);
  EXPECT_EQ(v1::FINISH_REASON_TIME_LIMIT, response.completion().finish_reason());
  EXPECT_EQ("a", response.message().parts(0).text());
}

// Who leaves a stream early frees what it held at the server.
TEST_F(Live, LeavingEarlyCancels) {
  {
    CompletionStream stream =
        client.stream(prompt(R"({"events": [{"text": "a", "repeat": 5}, {"delay_seconds": 60}]})"));
    for (int event = 0; event < 3; ++event) ASSERT_NE(nullptr, stream.next());
    EXPECT_EQ(1u, streams_in_flight());
  }
  const auto begin = std::chrono::steady_clock::now();
  while (streams_in_flight() != 0 && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
  }
  EXPECT_EQ(0u, streams_in_flight());
}

// Seed 0 is a seed and is told back; without one the server draws one. 0 tokens are an answer without text.
TEST_F(Live, ZeroIsNotUnset) {
  v1::CompleteRequest request = prompt("three words here");
  const v1::CompleteResponse drawn = client.complete(request);
  EXPECT_TRUE(drawn.started().sampling().has_seed());
  EXPECT_FALSE(drawn.started().sampling().has_temperature());
  request.mutable_sampling()->set_seed(0);
  request.mutable_sampling()->set_temperature(0);
  const v1::CompleteResponse seeded = client.complete(request);
  EXPECT_TRUE(seeded.started().sampling().has_seed());
  EXPECT_EQ(0u, seeded.started().sampling().seed());
  EXPECT_TRUE(seeded.started().sampling().has_temperature());
  request.mutable_stopping()->set_max_tokens(0);
  const v1::CompleteResponse empty = client.complete(request);
  EXPECT_EQ(0, empty.message().parts_size());
  EXPECT_EQ(v1::FINISH_REASON_LENGTH, empty.completion().finish_reason());
}

// Who asks for progress gets it between `started` and the first delta.
TEST_F(Live, Progress) {
  v1::CompleteRequest request = prompt("two words");
  request.mutable_output()->set_progress(true);
  CompletionStream stream = client.stream(request);
  const std::vector<Event> events{stream.begin(), stream.end()};
  EXPECT_EQ((std::vector{Event::kStarted, Event::kProgress, Event::kText, Event::kText, Event::kCompletion}),
            arms_of(events));
}

// A message of many megabytes arrives whole, both ways.
TEST_F(Live, ALargeMessage) {
  const std::string long_text(3 << 20, 'x');
  const v1::CompleteResponse response =
      client.complete(prompt(R"({"events": [{"text": ")" + long_text + R"(", "repeat": 5}]})"));
  EXPECT_EQ(5 * long_text.size(), response.message().parts(0).text().size());
}

// Ten thousand events keep their order.
TEST_F(Live, ALongStream) {
  std::size_t num_pieces = 0;
  for (const std::string& piece : client.stream(prompt(R"({"events": [{"text": "ab", "repeat": 10000}]})")).text()) {
    num_pieces += piece.size() / 2;
  }
  EXPECT_EQ(10000u, num_pieces);
}

// The caller's id of a request is told back.
TEST_F(Live, TheRequestId) {
  CallOptions options;
  options.request_id = "mine-1";
  EXPECT_EQ("mine-1", client.complete(prompt("Hi"), options).started().id());
  EXPECT_NE("", client.complete(prompt("Hi")).started().id());
}

// A model that is not there is named; so is a backend.
TEST_F(Live, NotFound) {
  v1::CompleteRequest request = prompt("Hi");
  request.set_model("nope");
  const Error error = failure_of([&] { client.complete(request); });
  EXPECT_EQ(grpc::StatusCode::NOT_FOUND, error.code);
  EXPECT_EQ(v1::ERROR_REASON_MODEL_NOT_FOUND, error.known_reason());
  EXPECT_EQ("nope", error.resource);
  EXPECT_EQ("nope", error.metadata.at("model"));
}

// A load that cannot be is refused by its reason; to unload what is not there is no failure.
TEST_F(Live, LoadAndUnload) {
  v1::LoadRequest request;
  EXPECT_EQ("INVALID_REQUEST", failure_of([&] { client.load(request); }).reason);
  request.set_model("other");
  request.mutable_source()->mutable_local()->set_path("../outside.gguf");
  const Error error = failure_of([&] { client.load(request); });
  EXPECT_EQ(grpc::StatusCode::INVALID_ARGUMENT, error.code);
  EXPECT_EQ(v1::ERROR_REASON_MODEL_PATH_NOT_ALLOWED, error.known_reason());
  EXPECT_EQ(error.reason, failure_of([&] { client.stream_load(request).next(); }).reason);
  v1::UnloadRequest unload;
  unload.set_model("other");
  EXPECT_FALSE(client.unload(unload).was_loaded());
}

// What may be asked about models is answered.
TEST_F(Live, Questions) {
  const v1::ListModelsResponse models = client.list_models();
  ASSERT_EQ(1, models.models_size());
  EXPECT_EQ("scripted", models.models(0).name());
  EXPECT_EQ("scripted", models.default_model());
  v1::GetModelRequest request;
  request.set_model("scripted");
  EXPECT_EQ(v1::MODEL_STATE_READY, client.get_model(request).model().state());
  for (const v1::WatchModelsResponse& snapshot : client.watch_models()) {
    EXPECT_EQ("scripted", snapshot.models(0).name());
    break;
  }
  EXPECT_EQ("scripted", client.list_backends().backends(0).id());
  EXPECT_TRUE(client.health().ready());
}

// Tokens of the scripted backend are bytes; it gives no embeddings and says so.
TEST_F(Live, Tokens) {
  v1::TokenizeRequest text;
  text.set_text("a\n");
  const v1::TokenizeResponse tokens = client.tokenize(text);
  EXPECT_EQ((std::vector<std::uint32_t>{97, 10}),
            (std::vector<std::uint32_t>{tokens.token_ids().begin(), tokens.token_ids().end()}));
  v1::DetokenizeRequest ids;
  ids.add_token_ids(255);
  EXPECT_EQ("\xff", client.detokenize(ids).data());
  EXPECT_EQ(2u, client.count_tokens(prompt("two words")).tokens());
  v1::EmbedRequest embed;
  embed.add_inputs("text");
  EXPECT_EQ("UNSUPPORTED_BY_BACKEND", failure_of([&] { client.embed(embed); }).reason);
}

}  // namespace
}  // namespace inferwire::tests
