// What an Error says of a status. Pure: no server.

#include "inferwire/error.h"

#include <gtest/gtest.h>

#include "scripted.h"

namespace inferwire::tests {
namespace {

using std::chrono::milliseconds;

Error read(const Refusal& refusal) { return Error(grpc::Status(refusal.code, refusal.message, refusal.details())); }

// Code, reason, metadata, violations and the thing's name arrive as they were sent.
TEST(Error, SaysAllThatTheServerSaid) {
  Refusal refusal{grpc::StatusCode::NOT_FOUND, "no such model", "MODEL_NOT_FOUND"};
  refusal.metadata = {{"model", "nope"}};
  refusal.violations = {{"model", "is unknown"}};
  refusal.resource = "nope";
  const Error error = read(refusal);
  EXPECT_EQ(grpc::StatusCode::NOT_FOUND, error.code);
  EXPECT_EQ("MODEL_NOT_FOUND", error.reason);
  EXPECT_EQ(v1::ERROR_REASON_MODEL_NOT_FOUND, error.known_reason());
  EXPECT_EQ("no such model", error.message);
  EXPECT_EQ(refusal.metadata, error.metadata);
  EXPECT_EQ(refusal.violations, error.violations);
  EXPECT_EQ("nope", error.resource);
  EXPECT_FALSE(error.retry_delay);
  EXPECT_STREQ("MODEL_NOT_FOUND: no such model; model: is unknown", error.what());
}

// A reason of a newer server stays readable.
TEST(Error, KeepsAnUnknownReason) {
  const Error error = read({grpc::StatusCode::ABORTED, "", "SOLAR_FLARE"});
  EXPECT_EQ("SOLAR_FLARE", error.reason);
  EXPECT_FALSE(error.known_reason());
}

// No reason is no value of the enum, and neither is the enum's own zero.
TEST(Error, KnowsNoReasonWhereNoneIs) {
  EXPECT_FALSE(read({grpc::StatusCode::ABORTED, ""}).known_reason());
  EXPECT_FALSE(read({grpc::StatusCode::ABORTED, "", "UNSPECIFIED"}).known_reason());
}

// Details that are absent, garbage or of another domain leave code and message, and no reason.
TEST(Error, LivesWithoutDetails) {
  Refusal garbage{grpc::StatusCode::INTERNAL, "plain"};
  garbage.raw_details = "\xff\xff\xff";
  Refusal empty = garbage;
  empty.raw_details = "";
  Refusal half{grpc::StatusCode::INTERNAL, "plain", "INTERNAL"};
  half.raw_details = half.details().substr(0, half.details().size() - 3);
  Refusal foreign{grpc::StatusCode::INTERNAL, "plain", "PROXY_SAYS_NO"};
  foreign.domain = "proxy.example";
  foreign.metadata = {{"proxy", "1"}};
  for (const Refusal& refusal : {Refusal{grpc::StatusCode::INTERNAL, "plain"}, garbage, empty, half, foreign}) {
    const Error error = read(refusal);
    EXPECT_EQ(grpc::StatusCode::INTERNAL, error.code);
    EXPECT_EQ("", error.reason);
    EXPECT_TRUE(error.metadata.empty());
    EXPECT_FALSE(error.known_reason());
    EXPECT_STREQ("INTERNAL: plain", error.what());
  }
}

// Garbage inside one detail takes the others with it: half a story is none.
TEST(Error, BelievesAllDetailsOrNone) {
  Refusal refusal{grpc::StatusCode::INTERNAL, "plain", "INTERNAL"};
  // An Any of this type whose value is no message.
  refusal.raw_details = refusal.details() + "\x1a\x2d\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x01\xff";
  EXPECT_EQ("", read(refusal).reason);
}

// A delay is rounded up to whole milliseconds, so nobody comes too early.
TEST(Error, ReadsTheDelay) {
  Refusal refusal{grpc::StatusCode::UNAVAILABLE, "", "DRAINING"};
  refusal.retry_delay = milliseconds(1250);
  EXPECT_EQ(milliseconds(1250), read(refusal).retry_delay);
  // {retry_delay: {nanos: 1}}
  refusal.raw_details = "\x1a\x30\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x04\x0a\x02\x10\x01";
  EXPECT_EQ(milliseconds(1), read(refusal).retry_delay);
  // {retry_delay: {seconds: 2^63 - 1}} is no Duration, and no overflow either.
  refusal.raw_details =
      "\x1a\x38\x0a\x28type.googleapis.com/"
      "google.rpc.RetryInfo\x12\x0c\x0a\x0a\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f";
  EXPECT_LT(milliseconds(0), read(refusal).retry_delay);
}

TEST(Error, NamesEveryCode) {
  for (int code = 0; code <= 16; ++code) {
    EXPECT_EQ(code == 2, name_of(static_cast<grpc::StatusCode>(code)) == "UNKNOWN") << code;
  }
  EXPECT_EQ("UNAUTHENTICATED", name_of(grpc::StatusCode::UNAUTHENTICATED));
}

}  // namespace
}  // namespace inferwire::tests
