// The law of a stream: by hand-made events, and against a scripted server.

#include "inferwire/stream.h"

#include <gtest/gtest.h>

#include <functional>
#include <iterator>
#include <ranges>
#include <stdexcept>
#include <thread>

#include "inferwire/client.h"
#include "scripted.h"

namespace inferwire::tests {
namespace {

using std::chrono::milliseconds;

Error failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(grpc::StatusCode::OK, "", "nothing failed");
}

// The terminal event is held back until the status is OK.
TEST(Reading, HoldsTheCompletionBack) {
  Reading<Event> reading;
  Event first = started(), last = completion();
  EXPECT_TRUE(reading.passes(first));
  EXPECT_FALSE(reading.passes(last));
  EXPECT_EQ(nullptr, reading.last());
  EXPECT_EQ(completion(), *reading.end());
  EXPECT_EQ(completion(), *reading.last());
  EXPECT_EQ(started(), *reading.first());
  EXPECT_EQ(State::completed, reading.state());
}

// An arm that this version does not know is skipped, wherever it stands.
TEST(Reading, SkipsAnUnknownEvent) {
  Reading<Event> reading;
  Event unknown = unknown_event();
  EXPECT_FALSE(reading.passes(unknown));
  EXPECT_EQ(nullptr, reading.first());
  Event last = completion();
  reading.passes(last);
  EXPECT_FALSE(reading.passes(unknown));
  EXPECT_EQ(completion(), *reading.end());
}

// OK without a completion is the local failure STREAM_TRUNCATED, never a short answer.
TEST(Reading, TakesNoCompletionForTruncated) {
  Reading<Event> reading;
  Event first = started();
  reading.passes(first);
  const Error error = failure_of([&] { reading.end(); });
  EXPECT_EQ(grpc::StatusCode::ABORTED, error.code);
  EXPECT_EQ(v1::ERROR_REASON_STREAM_TRUNCATED, error.known_reason());
  EXPECT_EQ(State::failed, reading.state());
}

// A completion that no OK followed is never shown.
TEST(Reading, ForgetsTheCompletionOfAFailure) {
  Reading<Event> reading;
  Event last = completion();
  reading.passes(last);
  reading.stop(State::failed);
  reading.stop(State::cancelled);
  EXPECT_EQ(nullptr, reading.last());
  EXPECT_EQ(State::failed, reading.state());
}

// A load's way ends with `loaded`; a watch has no last event.
TEST(Reading, KnowsEveryStream) {
  Reading<v1::StreamLoadResponse> load;
  v1::StreamLoadResponse loaded;
  loaded.mutable_loaded();
  EXPECT_FALSE(load.passes(loaded));
  EXPECT_NE(nullptr, load.end());
  Reading<v1::WatchModelsResponse> watch;
  v1::WatchModelsResponse snapshot;
  EXPECT_TRUE(watch.passes(snapshot));
  EXPECT_EQ(nullptr, watch.end());
  EXPECT_EQ(State::completed, watch.state());
}

class StreamTest : public testing::Test {
 protected:
  std::vector<Step> steps(const std::vector<Event>& events) { return {events.begin(), events.end()}; }

  std::vector<Event> read(const ConnectOptions& options = {}) {
    CompletionStream stream = connect(server.address(), options).stream(prompt("Hi"));
    return {stream.begin(), stream.end()};
  }

  static Refusal queue_full() {
    Refusal refusal{grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue of \"demo\" is full", "QUEUE_FULL"};
    refusal.metadata = {{"model", "demo"}, {"queueCapacity", "64"}};
    refusal.retry_delay = milliseconds(10);
    return refusal;
  }

  static Refusal loading() {
    Refusal refusal{grpc::StatusCode::UNAVAILABLE, "not yet", "MODEL_LOADING"};
    refusal.retry_delay = milliseconds(10);
    return refusal;
  }

  ScriptedServer server;
};

// What the server writes is what the range gives.
TEST_F(StreamTest, GivesEveryEventInOrder) {
  server.streams = {steps(answer({"Hel", "lo"}))};
  EXPECT_EQ(answer({"Hel", "lo"}), read());
}

// An arm that this version does not know is skipped, also after the completion.
TEST_F(StreamTest, SkipsAnUnknownEvent) {
  server.streams = {steps({unknown_event(), started(), unknown_event(), text("a"), completion(), unknown_event()})};
  EXPECT_EQ(answer({"a"}), read());
}

// OK without a completion is the local failure STREAM_TRUNCATED.
TEST_F(StreamTest, FailsWithoutACompletion) {
  server.streams = {steps({started(), text("a")})};
  EXPECT_EQ(v1::ERROR_REASON_STREAM_TRUNCATED, failure_of([this] { read(); }).known_reason());
}

// A completion followed by a status that is not OK is a failure.
TEST_F(StreamTest, FailsDespiteACompletion) {
  server.streams = {steps(answer({"a"}))};
  server.streams[0].emplace_back(Refusal{grpc::StatusCode::INTERNAL, "oh", "INTERNAL"});
  EXPECT_EQ("INTERNAL", failure_of([this] { read(); }).reason);
}

// UNAVAILABLE and RESOURCE_EXHAUSTED without any event are tried again; the caller sees the answer alone.
TEST_F(StreamTest, RetriesBeforeTheFirstEvent) {
  server.streams = {{loading()}, {queue_full()}, steps(answer({"a"}))};
  EXPECT_EQ(answer({"a"}), read());
  EXPECT_EQ(3, server.num_calls());
}

// The third refusal reaches the caller with all its details.
TEST_F(StreamTest, EndsWhereRetriesEnd) {
  server.streams = {{queue_full()}};
  const Error error = failure_of([this] { read(); });
  EXPECT_EQ(3, server.num_calls());
  EXPECT_EQ("QUEUE_FULL", error.reason);
  EXPECT_EQ("64", error.metadata.at("queueCapacity"));
  EXPECT_EQ(milliseconds(10), error.retry_delay);
}

// After the first event no code makes the call start again: the text would come twice.
TEST_F(StreamTest, DoesNotRetryAfterADelta) {
  server.streams = {steps({started(), text("a")})};
  server.streams[0].emplace_back(loading());
  EXPECT_EQ(grpc::StatusCode::UNAVAILABLE, failure_of([this] { read(); }).code);
  EXPECT_EQ(1, server.num_calls());
}

// A negative pushback says that a retry is useless.
TEST_F(StreamTest, DoesNotRetryAgainstTheServersWord) {
  Refusal refusal = loading();
  refusal.pushback = "-1";
  server.streams = {{refusal}};
  EXPECT_EQ("MODEL_LOADING", failure_of([this] { read(); }).reason);
  EXPECT_EQ(1, server.num_calls());
}

// Who does not want retries gets none.
TEST_F(StreamTest, RetriesOnlyWhereAllowed) {
  server.streams = {{loading()}};
  ConnectOptions options;
  options.retry = false;
  EXPECT_EQ("MODEL_LOADING", failure_of([&] { read(options); }).reason);
  EXPECT_EQ(1, server.num_calls());
}

// A long prompt is repeated like a short one.
TEST_F(StreamTest, RetriesALongRequest) {
  server.streams = {{loading()}, steps(answer({"a"}))};
  const std::string long_prompt(4 << 20, 'x');
  CompletionStream stream = connect(server.address()).stream(prompt(long_prompt));
  EXPECT_EQ("a", stream.gather().message().parts(0).text());
  EXPECT_EQ(2, server.num_calls());
  EXPECT_EQ(long_prompt.size(), server.request().prompt().size());
}

// `started` is there with the first event; `completion` only when all has been read; then it is over.
TEST_F(StreamTest, TellsItsBeginningAndItsEnd) {
  server.streams = {steps(answer({"a"}))};
  CompletionStream stream = connect(server.address()).stream(prompt("Hi"));
  EXPECT_EQ(nullptr, stream.started());
  EXPECT_EQ(started(), *stream.next());
  EXPECT_EQ(started().started(), *stream.started());
  EXPECT_EQ(nullptr, stream.completion());
  EXPECT_EQ("<Stream [open]>", stream.describe());
  EXPECT_EQ(2, std::distance(stream.begin(), stream.end()));
  EXPECT_EQ(completion().completion(), *stream.completion());
  EXPECT_EQ(stream.begin(), stream.end());
  EXPECT_EQ("<Stream [completed]>", stream.describe());
}

// `text` leaves out thoughts and whatever else comes.
TEST_F(StreamTest, TextIsOnlyTheText) {
  server.streams = {steps({started(), reasoning("hm"), text("a"), unknown_event(), text("b"), completion()})};
  const Client client = connect(server.address());
  std::vector<std::string> pieces;
  for (const std::string& piece : client.stream(prompt("Hi")).text()) pieces.push_back(piece);
  EXPECT_EQ((std::vector<std::string>{"a", "b"}), pieces);
  CompletionStream stream = client.stream(prompt("Hi"));
  auto view = stream.text();
  EXPECT_EQ(pieces, (std::vector<std::string>{view.begin(), view.end()}));
  EXPECT_NE(nullptr, stream.completion());
}

// `gather` gives the stream as Complete would have.
TEST_F(StreamTest, GatherIsTheUnaryAnswer) {
  server.streams = {steps(answer({"a", "b"}))};
  const v1::CompleteResponse response = connect(server.address()).stream(prompt("Hi")).gather();
  EXPECT_EQ(gather(answer({"a", "b"})), response);
}

// A stream goes on where it is moved; what it leaves behind is over.
TEST_F(StreamTest, CanBeMoved) {
  server.streams = {steps(answer({"a"}))};
  CompletionStream from = connect(server.address()).stream(prompt("Hi"));
  EXPECT_EQ(started(), *from.next());
  CompletionStream to = std::move(from);
  EXPECT_EQ(nullptr, from.next());
  from.cancel();
  from.close();
  EXPECT_EQ(text("a"), *to.next());
  EXPECT_EQ(completion(), *to.next());
}

// What takes a stream's place ends it.
TEST_F(StreamTest, AssignmentCancels) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), hang}, steps(answer({"a"}))};
  const Client client = connect(server.address());
  CompletionStream stream = client.stream(prompt("Hi"));
  stream.next();
  stream = client.stream(prompt("Hi"));
  EXPECT_TRUE(is_kept(hang->gone));
  EXPECT_EQ("a", stream.gather().message().parts(0).text());
}

// A stream and its text are ranges of C++20 too, and go through its views.
TEST_F(StreamTest, GoesThroughViews) {
  static_assert(std::ranges::input_range<CompletionStream> && std::ranges::viewable_range<CompletionStream>);
  server.streams = {steps(answer({"a", "bc"}))};
  const Client client = connect(server.address());
  const auto size = std::views::transform([](const std::string& piece) { return piece.size(); });
  std::vector<std::size_t> sizes;
  for (const std::size_t one : client.stream(prompt("Hi")).text() | size) sizes.push_back(one);
  CompletionStream stream = client.stream(prompt("Hi"));
  for (const std::size_t one : stream.text() | size) sizes.push_back(one);
  EXPECT_EQ((std::vector<std::size_t>{1, 2, 1, 2}), sizes);
  EXPECT_NE(nullptr, stream.completion());
}

// Who leaves a stream's scope early ends the generation at the server.
TEST_F(StreamTest, LeavingTheScopeCancels) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), text("a"), hang}};
  const Client client = connect(server.address());
  for (const Event& event : client.stream(prompt("Hi"))) {
    if (event.has_text()) break;
  }
  EXPECT_TRUE(is_kept(hang->gone));
}

// The view of a stream that nobody else holds cancels as the stream does.
TEST_F(StreamTest, LeavingTheTextCancels) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), text("a"), hang}};
  const Client client = connect(server.address());
  for (const std::string& piece : client.stream(prompt("Hi")).text()) {
    EXPECT_EQ("a", piece);
    break;
  }
  EXPECT_TRUE(is_kept(hang->gone));
}

// An exception of the reader's own leaves the scope like any other way out.
TEST_F(StreamTest, AnExceptionCancels) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), hang}};
  const auto fail = [this] {
    for (const Event& event : connect(server.address()).stream(prompt("Hi")))
      throw std::logic_error(event.DebugString());
  };
  EXPECT_THROW(fail(), std::logic_error);
  EXPECT_TRUE(is_kept(hang->gone));
}

// To leave does not wait for what the server has sent meanwhile.
TEST_F(StreamTest, LeavingAFloodCancels) {
  const auto flood = std::make_shared<Flood>();
  flood->event = text(std::string(1 << 20, 'x'));
  server.streams = {{started(), flood}};
  {
    CompletionStream stream = connect(server.address()).stream(prompt("Hi"));
    for (int event = 0; event < 4; ++event) ASSERT_NE(nullptr, stream.next());
  }
  EXPECT_TRUE(is_kept(flood->gone));
}

// A cancelled stream ends with CANCELLED, so nobody takes it for a whole answer. Another thread may cancel.
TEST_F(StreamTest, CancelIsToldToTheReader) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), hang}};
  CompletionStream stream = connect(server.address()).stream(prompt("Hi"));
  stream.next();
  std::thread other([&stream] { stream.cancel(); });
  EXPECT_EQ(grpc::StatusCode::CANCELLED, failure_of([&] { stream.next(); }).code);
  other.join();
  EXPECT_EQ(nullptr, stream.next());
  EXPECT_EQ("<Stream [failed]>", stream.describe());
  EXPECT_TRUE(is_kept(hang->gone));
}

// `close` ends the iteration without a failure.
TEST_F(StreamTest, CloseEndsTheIteration) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), hang}};
  CompletionStream stream = connect(server.address()).stream(prompt("Hi"));
  stream.next();
  stream.close();
  EXPECT_EQ(stream.begin(), stream.end());
  EXPECT_EQ("<Stream [cancelled]>", stream.describe());
  EXPECT_TRUE(is_kept(hang->gone));
}

// To cancel after the end does nothing.
TEST_F(StreamTest, TheFirstEndCounts) {
  server.streams = {steps(answer({"a"}))};
  CompletionStream stream = connect(server.address()).stream(prompt("Hi"));
  stream.gather();
  stream.cancel();
  stream.close();
  EXPECT_EQ("<Stream [completed]>", stream.describe());
}

// A call's own deadline is DEADLINE_EXCEEDED, and the server learns of it.
TEST_F(StreamTest, TheDeadlineEndsIt) {
  const auto hang = std::make_shared<Hang>();
  server.streams = {{started(), hang}};
  CallOptions options;
  options.timeout = milliseconds(200);
  const Error error = failure_of([&] { connect(server.address()).stream(prompt("Hi"), options).gather(); });
  EXPECT_EQ(grpc::StatusCode::DEADLINE_EXCEEDED, error.code);
  EXPECT_TRUE(is_kept(hang->gone));
}

// The way of a load that ends without `loaded` is truncated as well.
TEST_F(StreamTest, ALoadCanBeTruncated) {
  server.load.emplace_back().mutable_progress()->set_fraction(0.5f);
  Stream<v1::StreamLoadResponse> stream = connect(server.address()).stream_load({});
  EXPECT_TRUE(stream.next()->has_progress());
  EXPECT_EQ("STREAM_TRUNCATED", failure_of([&] { stream.next(); }).reason);
}

}  // namespace
}  // namespace inferwire::tests
