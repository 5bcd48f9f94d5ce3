#include "inferwire/client.h"

#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#else
#include <arpa/inet.h>
#endif

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace inferwire {
namespace {

constexpr int max_message_bytes = 32 * 1024 * 1024;

// gRPC itself retries by this, only while nothing of the answer has come, and it obeys the server's
// grpc-retry-pushback-ms. Loads are not in it: to repeat one is the caller's decision.
constexpr char retries[] = R"(
  "methodConfig": [{
    "name": [{"service": "inferwire.v1.InferenceService"}],
    "retryPolicy": {
      "maxAttempts": 3,
      "initialBackoff": "0.2s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1})";

constexpr char balancing[] = R"(
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "inferwire.v1.InferenceService"})";

std::string service_config(const ConnectOptions& options) {
  std::string config = "{";
  if (options.retry) config += retries;
  if (options.retry && options.balance) config += ",";
  if (options.balance) config += balancing;
  return config + "}";
}

grpc::ChannelArguments channel_arguments(const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  // A long prompt is silent for a while: the pings keep the connection known to what lies between, and find it dead.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(max_message_bytes);
  arguments.SetMaxSendMessageSize(max_message_bytes);
  arguments.SetServiceConfigJSON(service_config(options));
  // gRPC repeats only what it kept, and it keeps 256 KiB unless it is told otherwise: too little for a long prompt.
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, max_message_bytes);
  if (options.tls && !options.tls->server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls->server_name);
  }
  return arguments;
}

bool begins_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

bool is_loopback(const std::string& host) {
  if (host == "localhost") return true;
  in_addr four;
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  in6_addr six;
  const in6_addr loopback = IN6ADDR_LOOPBACK_INIT;
  return inet_pton(AF_INET6, host.c_str(), &six) == 1 &&
         std::equal(std::begin(six.s6_addr), std::end(six.s6_addr), std::begin(loopback.s6_addr));
}

/// Whether a gRPC target is this machine by its very name: a Unix socket, localhost, a loopback address.
bool is_local(std::string_view target) {
  if (begins_with(target, "unix:") || begins_with(target, "unix-abstract:")) return true;
  // Also with a scheme, such as dns:///localhost:50051 and ipv4:127.0.0.1:50051.
  std::string_view address = target.substr(target.rfind('/') + 1);
  for (const std::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (begins_with(address, scheme)) address.remove_prefix(scheme.size());
  }
  if (begins_with(address, "[")) {
    address = address.substr(1, address.find(']') - 1);
  } else if (std::count(address.begin(), address.end(), ':') == 1) {
    address = address.substr(0, address.find(':'));
  }
  return is_loopback(std::string(address));
}

std::shared_ptr<grpc::ChannelCredentials> credentials(const ConnectOptions& options, bool is_plain_text) {
  if (is_plain_text) return grpc::InsecureChannelCredentials();
  const Tls tls = options.tls.value_or(Tls{});
  return grpc::SslCredentials({tls.ca, tls.key, tls.certificate});
}

std::string read_file(const std::string& path) {
  if (path.empty()) return {};
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw std::runtime_error("cannot read " + path);
  return text;
}

grpc_slice slice_of(const std::string& text) { return grpc_slice_from_static_buffer(text.data(), text.size()); }

/// gRPC ends the process over metadata that it cannot send, and a request id may come from anywhere.
void check_metadata(const std::string& key, const std::string& value) {
  if (!grpc_header_key_is_legal(slice_of(key))) {
    throw std::invalid_argument("a metadata key must be of a-z 0-9 _ - . and not empty");
  }
  const bool is_binary = key.size() >= 4 && key.compare(key.size() - 4, 4, "-bin") == 0;
  if (!is_binary && !grpc_header_nonbin_value_is_legal(slice_of(value))) {
    throw std::invalid_argument("the metadata value of " + key + " must be of printable ASCII characters");
  }
}

CallOptions without_deadline(CallOptions options) {
  if (!options.timeout) options.timeout = no_timeout;
  return options;
}

}  // namespace

using Inference = v1::InferenceService::Stub;
using Models = v1::ModelService::Stub;

Tls Tls::from_files(const std::string& ca, const std::string& certificate, const std::string& key) {
  Tls tls;
  tls.ca = read_file(ca);
  tls.certificate = read_file(certificate);
  tls.key = read_file(key);
  return tls;
}

Client connect(const std::string& target, const ConnectOptions& options) { return Client(target, options); }

Client::Client(const std::string& target, const ConnectOptions& options)
    : target_(target),
      authorization_(options.token.empty() ? "" : "Bearer " + options.token),
      default_timeout_(options.default_timeout),
      is_plain_text_(options.plain_text || (!options.tls && is_local(target))) {
  if (options.plain_text && options.tls) throw std::invalid_argument("tls and plain_text exclude each other");
  if (options.tls && options.tls->certificate.empty() != options.tls->key.empty()) {
    throw std::invalid_argument("a certificate needs its key, and a key its certificate");
  }
  check_metadata("authorization", authorization_);
  channel_ = grpc::CreateCustomChannel(target, credentials(options, is_plain_text_), channel_arguments(options));
  inference_ = v1::InferenceService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
}

std::unique_ptr<grpc::ClientContext> Client::context(const CallOptions& options) const {
  auto context = std::make_unique<grpc::ClientContext>();
  const auto add = [&context](const std::string& key, const std::string& value) {
    check_metadata(key, value);
    context->AddMetadata(key, value);
  };
  if (!authorization_.empty()) add("authorization", authorization_);
  if (!options.request_id.empty()) add("x-request-id", options.request_id);
  for (const auto& [key, value] : options.metadata) add(key, value);
  const std::chrono::milliseconds timeout = options.timeout.value_or(default_timeout_);
  if (timeout != no_timeout) {
    // Not the system's clock: a deadline must not move when that is set.
    context->set_deadline(
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout.count(), GPR_TIMESPAN)));
  }
  return context;
}

v1::CompleteResponse Client::complete(const v1::CompleteRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::Complete, request, options);
}

CompletionStream Client::stream(const v1::CompleteRequest& request, const CallOptions& options) const {
  return CompletionStream(open(*inference_, &Inference::StreamComplete, request, options));
}

v1::EmbedResponse Client::embed(const v1::EmbedRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::Embed, request, options);
}

v1::CountTokensResponse Client::count_tokens(const v1::CompleteRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::CountTokens, request, options);
}

v1::TokenizeResponse Client::tokenize(const v1::TokenizeRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::Tokenize, request, options);
}

v1::DetokenizeResponse Client::detokenize(const v1::DetokenizeRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::Detokenize, request, options);
}

v1::ListModelsResponse Client::list_models(const v1::ListModelsRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::ListModels, request, options);
}

v1::GetModelResponse Client::get_model(const v1::GetModelRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::GetModel, request, options);
}

Stream<v1::WatchModelsResponse> Client::watch_models(const v1::WatchModelsRequest& request,
                                                     const CallOptions& options) const {
  return open(*inference_, &Inference::WatchModels, request, without_deadline(options));
}

v1::ListBackendsResponse Client::list_backends(const v1::ListBackendsRequest& request,
                                               const CallOptions& options) const {
  return call(*inference_, &Inference::ListBackends, request, options);
}

v1::HealthResponse Client::health(const v1::HealthRequest& request, const CallOptions& options) const {
  return call(*inference_, &Inference::Health, request, options);
}

v1::LoadResponse Client::load(const v1::LoadRequest& request, const CallOptions& options) const {
  return call(*models_, &Models::Load, request, without_deadline(options));
}

Stream<v1::StreamLoadResponse> Client::stream_load(const v1::LoadRequest& request, const CallOptions& options) const {
  return open(*models_, &Models::StreamLoad, request, without_deadline(options));
}

v1::UnloadResponse Client::unload(const v1::UnloadRequest& request, const CallOptions& options) const {
  return call(*models_, &Models::Unload, request, options);
}

std::string Client::describe() const {
  return "<Client [" + target_ + " | " + (is_plain_text_ ? "plain text" : "TLS") + " | " +
         (authorization_.empty() ? "no token" : "token") + "]>";
}

}  // namespace inferwire
