/// @file
/// Where a client calls and how: one connection, one method per RPC.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "inferwire/error.h"
#include "inferwire/gather.h"
#include "inferwire/stream.h"
#include "inferwire/v1/inference.grpc.pb.h"
#include "inferwire/v1/models.grpc.pb.h"

namespace inferwire {

/// The timeout of a call without a deadline.
inline constexpr std::chrono::milliseconds no_timeout = std::chrono::milliseconds::max();

/// The certificates of a TLS connection, as PEM text.
struct Tls {
  std::string ca = {};           ///< Whom to trust; empty: whom the system trusts.
  std::string certificate = {};  ///< This client's own chain, for a server that asks for it.
  std::string key = {};          ///< The key of `certificate`; both or none.
  std::string server_name = {};  ///< The name that the server's certificate must have; empty: the target's.

  /// Reads the files that are named; an empty path leaves its text empty.
  ///
  /// @throws std::runtime_error a file cannot be read.
  static Tls from_files(const std::string& ca, const std::string& certificate = {}, const std::string& key = {});
};

/// How to connect.
struct ConnectOptions {
  /// TLS with these certificates. Unset: plain text to this machine, TLS to any other.
  std::optional<Tls> tls = {};
  /// Plain text to any machine, for a network that is secured otherwise. Excludes `tls`.
  bool plain_text = false;
  /// The key that every call carries; empty: none.
  std::string token = {};
  /// How long a call may take when it does not say so itself. Loads and watches have no deadline of their own.
  std::chrono::milliseconds default_timeout = std::chrono::seconds(300);
  /// gRPC repeats a call of the inference service up to twice while nothing of its answer has come.
  bool retry = true;
  /// Spreads calls over all addresses of the target, in turn, and leaves out those that say they are not ready.
  bool balance = false;
};

/// What one call says beside its request.
struct CallOptions {
  /// How long it may take. Unset: the client's default; `no_timeout`: as long as it takes.
  std::optional<std::chrono::milliseconds> timeout = {};
  /// The request's id, in the server's log and in `started`. Empty: the server makes one.
  std::string request_id = {};
  /// More metadata; keys in lower case.
  std::multimap<std::string, std::string> metadata = {};
};

/// A connection to a server. Threads may share it; it connects at the first call and again after a loss.
///
/// There is one method per RPC. Each blocks, throws Error when the call fails, and std::invalid_argument when metadata
/// holds what cannot be sent. A stream's method returns when the request is on its way.
class Client {
 public:
  /// Returns the whole answer.
  v1::CompleteResponse complete(const v1::CompleteRequest& request, const CallOptions& options = {}) const;
  /// Returns the answer as it is made. To leave the stream's scope early cancels the generation.
  CompletionStream stream(const v1::CompleteRequest& request, const CallOptions& options = {}) const;
  /// Returns one vector per text, in order.
  v1::EmbedResponse embed(const v1::EmbedRequest& request, const CallOptions& options = {}) const;
  /// Returns how many tokens the request would put before the model; nothing is generated.
  v1::CountTokensResponse count_tokens(const v1::CompleteRequest& request, const CallOptions& options = {}) const;
  /// Returns the tokens of a text with the bytes of each.
  v1::TokenizeResponse tokenize(const v1::TokenizeRequest& request, const CallOptions& options = {}) const;
  /// Returns the bytes that tokens stand for; they need not be valid UTF-8.
  v1::DetokenizeResponse detokenize(const v1::DetokenizeRequest& request, const CallOptions& options = {}) const;
  /// Returns every model in any state, and the default model's name.
  v1::ListModelsResponse list_models(const v1::ListModelsRequest& request = {}, const CallOptions& options = {}) const;
  /// Returns one model.
  v1::GetModelResponse get_model(const v1::GetModelRequest& request, const CallOptions& options = {}) const;
  /// Returns the list of models now and again after every change; it ends only by failure or by the caller.
  Stream<v1::WatchModelsResponse> watch_models(const v1::WatchModelsRequest& request = {},
                                               const CallOptions& options = {}) const;
  /// Returns the backends with their capabilities, models and health, ordered by id.
  v1::ListBackendsResponse list_backends(const v1::ListBackendsRequest& request = {},
                                         const CallOptions& options = {}) const;
  /// Returns what the server is and how it is.
  v1::HealthResponse health(const v1::HealthRequest& request = {}, const CallOptions& options = {}) const;

  /// Loads a model and returns when it is ready. To stop waiting does not stop the load: `unload` does.
  v1::LoadResponse load(const v1::LoadRequest& request, const CallOptions& options = {}) const;
  /// Returns the way of a load: any number of `progress`, then exactly one `loaded`. As `load` otherwise.
  Stream<v1::StreamLoadResponse> stream_load(const v1::LoadRequest& request, const CallOptions& options = {}) const;
  /// Unloads a model.
  v1::UnloadResponse unload(const v1::UnloadRequest& request, const CallOptions& options = {}) const;

  /// Calls a method of any generated stub over this connection, with this client's token, deadline and errors:
  /// `client.call(*stub, &Health::Stub::Check, request)`.
  template <class Stub, class Q, class R>
  R call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Q&, R*), const Q& request,
         const CallOptions& options = {}) const {
    const std::unique_ptr<grpc::ClientContext> context = this->context(options);
    R response;
    const grpc::Status status = (stub.*method)(context.get(), request, &response);
    if (!status.ok()) throw Error(status);
    return response;
  }

  /// Opens a stream of any generated stub over this connection, as `call` does:
  /// `client.open(*stub, &Health::Stub::Watch, request)`.
  template <class Stub, class Q, class E>
  Stream<E> open(Stub& stub, std::unique_ptr<grpc::ClientReader<E>> (Stub::*method)(grpc::ClientContext*, const Q&),
                 const Q& request, const CallOptions& options = {}) const {
    std::unique_ptr<grpc::ClientContext> context = this->context(options);
    std::unique_ptr<grpc::ClientReader<E>> reader = (stub.*method)(context.get(), request);
    return Stream<E>(std::move(context), std::move(reader));
  }

  /// The connection, for stubs of other services such as grpc.health.v1. It carries no token by itself.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  /// Such as "<Client [127.0.0.1:50051 | plain text | no token]>".
  std::string describe() const;

 private:
  friend Client connect(const std::string& target, const ConnectOptions& options);
  Client(const std::string& target, const ConnectOptions& options);

  /// What every call carries: token, request id, deadline.
  std::unique_ptr<grpc::ClientContext> context(const CallOptions& options) const;

  std::string target_;
  std::string authorization_;
  std::chrono::milliseconds default_timeout_;
  bool is_plain_text_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

/// Returns a client of the server at `target`, such as "127.0.0.1:50051" or "dns:///inferwire.example:443".
///
/// @throws std::invalid_argument options that exclude each other, a certificate without its key, or a token that
///   metadata cannot carry.
Client connect(const std::string& target = "127.0.0.1:50051", const ConnectOptions& options = {});

}  // namespace inferwire
