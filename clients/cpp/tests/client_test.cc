// Connections and calls, against a scripted server.

#include "inferwire/client.h"

#include <grpcpp/security/server_credentials.h>
#include <gtest/gtest.h>

#include <set>

#include "grpc/health/v1/health.grpc.pb.h"
#include "scripted.h"

namespace inferwire::tests {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ClientTest : public testing::Test {
 protected:
  ScriptedServer server;
};

// Each RPC of the contract has one method.
TEST_F(ClientTest, EveryMethodReachesItsRpc) {
  const Client client = connect(server.address());
  server.streams = {{started(), completion()}};
  server.load.emplace_back().mutable_loaded();
  client.complete(prompt("Hi"));
  client.stream(prompt("Hi")).gather();
  client.embed({});
  client.count_tokens(prompt("Hi"));
  client.tokenize({});
  client.detokenize({});
  client.list_models();
  client.get_model({});
  for (const v1::WatchModelsResponse& snapshot : client.watch_models()) EXPECT_EQ(1u, snapshot.revision());
  client.list_backends();
  client.health();
  client.load({});
  for (const v1::StreamLoadResponse& event : client.stream_load({})) EXPECT_TRUE(event.has_loaded());
  client.unload({});
  std::multiset<std::string> expected;
  for (const auto* service :
       {v1::CompleteRequest::descriptor()->file()->service(0), v1::LoadRequest::descriptor()->file()->service(0)}) {
    for (int index = 0; index < service->method_count(); ++index) expected.emplace(service->method(index)->name());
  }
  const std::vector<std::string> calls = server.calls();
  EXPECT_EQ(expected, (std::multiset<std::string>{calls.begin(), calls.end()}));
}

// Every call carries the key; a call without a deadline of its own has the client's.
TEST_F(ClientTest, CarriesTokenRequestIdAndDeadline) {
  ConnectOptions options;
  options.token = "secret";
  options.default_timeout = seconds(50);
  const Client client = connect(server.address(), options);
  CallOptions call;
  call.request_id = "mine";
  call.metadata = {{"traceparent", "t"}};
  client.complete(prompt("Hi"), call);
  EXPECT_EQ("Bearer secret", server.metadata("authorization"));
  EXPECT_EQ("mine", server.metadata("x-request-id"));
  EXPECT_EQ("t", server.metadata("traceparent"));
  ASSERT_TRUE(server.deadline());
  EXPECT_LT(seconds(20), *server.deadline());
  EXPECT_GE(seconds(51), *server.deadline());  // The wire rounds a deadline up.
  call.timeout = no_timeout;
  client.complete(prompt("Hi"), call);
  EXPECT_FALSE(server.deadline());
  EXPECT_EQ("<Client [" + server.address() + " | plain text | token]>", client.describe());
}

// Nobody has to think of a deadline.
TEST_F(ClientTest, HasADefaultDeadline) {
  connect(server.address()).list_models();
  ASSERT_TRUE(server.deadline());
  EXPECT_LT(seconds(270), *server.deadline());
  EXPECT_EQ("", server.metadata("authorization"));
}

// Loads and watches end when they end.
TEST_F(ClientTest, LoadsAndWatchesHaveNoDeadline) {
  const Client client = connect(server.address());
  client.load({});
  EXPECT_FALSE(server.deadline());
  server.load.emplace_back().mutable_loaded();
  for (const v1::StreamLoadResponse& event : client.stream_load({})) EXPECT_TRUE(event.has_loaded());
  EXPECT_FALSE(server.deadline());
  for (const v1::WatchModelsResponse& snapshot : client.watch_models()) EXPECT_EQ(1u, snapshot.revision());
  EXPECT_FALSE(server.deadline());
  CallOptions call;
  call.timeout = seconds(50);
  client.load({}, call);
  EXPECT_TRUE(server.deadline());
  client.unload({});
  EXPECT_TRUE(server.deadline());
}

// An unset field leaves the server's default in force; zero is said as zero.
TEST_F(ClientTest, ZeroIsSaid) {
  v1::CompleteRequest request = prompt("Hi");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_seed(0);
  request.mutable_stopping()->set_max_tokens(0);
  connect(server.address()).complete(request);
  EXPECT_TRUE(server.request().sampling().has_temperature());
  EXPECT_TRUE(server.request().sampling().has_seed());
  EXPECT_TRUE(server.request().stopping().has_max_tokens());
  EXPECT_FALSE(server.request().sampling().has_top_k());
}

// A unary call is repeated as a stream is, and fails with the same error.
TEST_F(ClientTest, UnaryCallsAreRetried) {
  Refusal refusal{grpc::StatusCode::UNAVAILABLE, "going", "DRAINING"};
  refusal.retry_delay = milliseconds(10);
  server.refusals["Complete"] = refusal;
  try {
    connect(server.address()).complete(prompt("Hi"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(v1::ERROR_REASON_DRAINING, error.known_reason());
    EXPECT_EQ(milliseconds(10), error.retry_delay);
  }
  EXPECT_EQ(3, server.num_calls());
}

// A load changes the server: to repeat it is the caller's decision.
TEST_F(ClientTest, ALoadIsNotRepeated) {
  server.refusals["Load"] = {grpc::StatusCode::UNAVAILABLE, "", "MODEL_UNLOADING"};
  EXPECT_THROW(connect(server.address()).load({}), Error);
  EXPECT_EQ(1, server.num_calls());
}

// A server that is not there is UNAVAILABLE without a reason.
TEST(Connect, NoServer) {
  try {
    connect("127.0.0.1:1").list_models();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(grpc::StatusCode::UNAVAILABLE, error.code);
    EXPECT_EQ("", error.reason);
  }
}

// gRPC would end the process over such metadata; a request id may come from a stranger.
TEST_F(ClientTest, MetadataThatCannotBeSentIsRefused) {
  const Client client = connect(server.address());
  for (const std::string& id : {std::string("a\nb"), std::string("h\xc3\xa9"), std::string("\0", 1)}) {
    CallOptions call;
    call.request_id = id;
    EXPECT_THROW(client.complete(prompt("Hi"), call), std::invalid_argument);
    EXPECT_THROW(client.stream(prompt("Hi"), call), std::invalid_argument);
  }
  for (const char* key : {"", "Upper", "a b", ":path", "a\n"}) {
    CallOptions call;
    call.metadata = {{key, "value"}};
    EXPECT_THROW(client.complete(prompt("Hi"), call), std::invalid_argument) << key;
  }
  CallOptions binary;
  binary.metadata = {{"trace-bin", std::string("\0\n\xff", 3)}};
  client.complete(prompt("Hi"), binary);
  EXPECT_EQ(1, server.num_calls());
}

// Options that cannot be kept are refused at once.
TEST(Connect, RefusesOptionsThatCannotBeKept) {
  ConnectOptions both;
  both.tls = Tls{};
  both.plain_text = true;
  EXPECT_THROW(connect("10.0.0.1:1", both), std::invalid_argument);
  ConnectOptions keyless;
  keyless.tls = Tls{"", "certificate", "", ""};
  EXPECT_THROW(connect("10.0.0.1:1", keyless), std::invalid_argument);
  ConnectOptions token;
  token.token = "a\nb";
  EXPECT_THROW(connect("10.0.0.1:1", token), std::invalid_argument);
  EXPECT_THROW(Tls::from_files("/nowhere/ca.pem"), std::runtime_error);
}

// Without a word about TLS, only a target on this very machine is called in plain text.
TEST(Connect, PlainTextStaysOnThisMachine) {
  const std::vector<std::pair<std::string, bool>> targets = {
      {"127.0.0.1:50051", true},
      {"127.1.2.3:50051", true},
      {"localhost:50051", true},
      {"localhost", true},
      {"[::1]:50051", true},
      {"::1", true},
      {"dns:///localhost:50051", true},
      {"dns:localhost:50051", true},
      {"ipv4:127.0.0.1:50051", true},
      {"ipv6:[::1]:50051", true},
      {"unix:/run/inferwire.sock", true},
      {"10.0.0.1:50051", false},
      {"127.0.0.1.example:443", false},
      {"inferwire.example:443", false},
      {"localhost.example:443", false},
      {"dns:///inferwire.example:443", false},
      {"dns://127.0.0.1/inferwire.example:443", false},
      {"[2001:db8::1]:443", false},
  };
  for (const auto& [target, is_local] : targets) {
    EXPECT_EQ("<Client [" + target + " | " + (is_local ? "plain text" : "TLS") + " | no token]>",
              connect(target).describe());
  }
}

// Plain text can be said, for a network that is trusted or secured otherwise; and TLS to this machine too.
TEST(Connect, TheWayCanBeSaid) {
  ConnectOptions plain;
  plain.plain_text = true;
  plain.token = "t";
  EXPECT_EQ("<Client [10.0.0.1:50051 | plain text | token]>", connect("10.0.0.1:50051", plain).describe());
  ConnectOptions tls;
  tls.tls = Tls{};
  EXPECT_EQ("<Client [localhost:50051 | TLS | no token]>", connect("localhost:50051", tls).describe());
}

// Stubs of other services get the same token, deadline and errors.
TEST_F(ClientTest, CallsOtherServices) {
  using grpc::health::v1::Health;
  const Client client = connect(server.address());
  const auto health = Health::NewStub(client.channel());
  grpc::health::v1::HealthCheckRequest request;
  EXPECT_EQ(grpc::health::v1::HealthCheckResponse::SERVING,
            client.call(*health, &Health::Stub::Check, request).status());
  for (const auto& response : client.open(*health, &Health::Stub::Watch, request)) {
    EXPECT_EQ(grpc::health::v1::HealthCheckResponse::SERVING, response.status());
    break;
  }
  request.set_service("nope");
  try {
    client.call(*health, &Health::Stub::Check, request);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(grpc::StatusCode::NOT_FOUND, error.code);
  }
}

// Calls go in turn to every address that says it is ready, and to no other.
TEST(Balance, LeavesOutWhoIsNotReady) {
  ScriptedServer first, second, third;
  first.set_serving(true);
  second.set_serving(false);
  third.set_serving(true);
  ConnectOptions options;
  options.balance = true;
  options.plain_text = true;
  const Client client = connect("ipv4:" + first.address() + "," + second.address() + "," + third.address(), options);
  for (int call = 0; call < 64 && (first.num_calls() == 0 || third.num_calls() == 0); ++call) {
    client.complete(prompt("Hi"));
  }
  EXPECT_LT(0, first.num_calls());
  EXPECT_EQ(0, second.num_calls());
  EXPECT_LT(0, third.num_calls());
}

/// A server that shows a certificate for "inferwire.test", and one CA for both sides.
class TlsTest : public testing::Test {
 protected:
  static std::string path(const std::string& name) { return INFERWIRE_TEST_CERTIFICATES "/" + name; }

  static std::shared_ptr<grpc::ServerCredentials> credentials(bool asks_for_certificate) {
    const Tls own = Tls::from_files(path("ca.pem"), path("server.pem"), path("server.key"));
    grpc::SslServerCredentialsOptions options(asks_for_certificate
                                                  ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                                  : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
    options.pem_root_certs = own.ca;
    options.pem_key_cert_pairs = {{own.key, own.certificate}};
    return grpc::SslServerCredentials(options);
  }

  static grpc::StatusCode call(const ScriptedServer& server, const Tls& tls) {
    ConnectOptions options;
    options.tls = tls;
    options.token = "secret";
    try {
      connect(server.address(), options).list_models();
      return grpc::StatusCode::OK;
    } catch (const Error& error) {
      return error.code;
    }
  }
};

// The server's certificate must come from the CA and have the name that was asked for.
TEST_F(TlsTest, TheServerIsVerified) {
  const ScriptedServer server(credentials(false));
  Tls tls = Tls::from_files(path("ca.pem"));
  tls.server_name = "inferwire.test";
  EXPECT_EQ(grpc::StatusCode::OK, call(server, tls));
  EXPECT_EQ("Bearer secret", server.metadata("authorization"));
  tls.server_name = "other.test";
  EXPECT_EQ(grpc::StatusCode::UNAVAILABLE, call(server, tls));
  Tls system;
  system.server_name = "inferwire.test";
  EXPECT_EQ(grpc::StatusCode::UNAVAILABLE, call(server, system));
}

// A server that asks for a certificate gets the client's own.
TEST_F(TlsTest, TheClientShowsItsCertificate) {
  const ScriptedServer server(credentials(true));
  Tls tls = Tls::from_files(path("ca.pem"), path("client.pem"), path("client.key"));
  tls.server_name = "inferwire.test";
  EXPECT_EQ(grpc::StatusCode::OK, call(server, tls));
  Tls bare = tls;
  bare.certificate = bare.key = "";
  EXPECT_EQ(grpc::StatusCode::UNAVAILABLE, call(server, bare));
}

}  // namespace
}  // namespace inferwire::tests
