// A real server on a real port that answers as a test's script says, and remembers what it was asked.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "inferwire/error.h"
#include "inferwire/v1/inference.grpc.pb.h"
#include "inferwire/v1/models.grpc.pb.h"
#include "messages.h"

namespace inferwire::tests {

/// A failure as the contract tells it.
struct Refusal {
  grpc::StatusCode code = grpc::StatusCode::INTERNAL;
  std::string message = {};
  std::string reason = {};
  std::map<std::string, std::string> metadata = {};
  std::optional<std::chrono::milliseconds> retry_delay = {};
  std::vector<Violation> violations = {};
  std::string resource = {};
  std::string domain = "inferwire.dev";
  /// In place of the details that the fields above say.
  std::optional<std::string> raw_details = {};
  /// The value of grpc-retry-pushback-ms where it is not retry_delay.
  std::string pushback = {};

  std::string details() const;
  /// The status, whose trailers go into `context`.
  grpc::Status tell(grpc::ServerContext& context) const;
};

/// A step of a script: nothing more comes until the caller is gone, which `gone` then tells.
struct Hang {
  std::promise<void> gone;
};

/// A step of a script: this event again and again until the caller is gone.
struct Flood {
  Event event;
  std::promise<void> gone;
};

using Step = std::variant<Event, Refusal, std::shared_ptr<Hang>, std::shared_ptr<Flood>>;

/// Returns whether `promise` is kept within ten seconds.
template <class T>
bool is_kept(std::promise<T>& promise) {
  return promise.get_future().wait_for(std::chrono::seconds(10)) == std::future_status::ready;
}

/// Answers one call after another from its scripts; the last script answers all further calls.
class ScriptedServer {
 public:
  explicit ScriptedServer(const std::shared_ptr<grpc::ServerCredentials>& credentials = nullptr);
  ~ScriptedServer();

  /// What StreamComplete answers.
  std::vector<std::vector<Step>> streams;
  /// What StreamLoad answers, to every call.
  std::vector<v1::StreamLoadResponse> load;
  /// How a unary RPC fails, by its name; else it answers with an empty message.
  std::map<std::string, Refusal> refusals;

  const std::string& address() const { return address_; }
  /// Sets what the health service says of the inference service.
  void set_serving(bool is_serving);

  /// The names of the RPCs that were called, in order.
  std::vector<std::string> calls() const;
  /// How often any RPC was called.
  int num_calls() const { return static_cast<int>(calls().size()); }
  /// The last CompleteRequest, of any of the RPCs that take one.
  v1::CompleteRequest request() const;
  /// The last call's metadata of this key; empty when it had none.
  std::string metadata(const std::string& key) const;
  /// What the last call had left of its time; unset: it had no deadline.
  std::optional<std::chrono::seconds> deadline() const;

 private:
  class Inference;
  class Models;

  void note(const std::string& method, const grpc::ServerContext& context);
  grpc::Status answer(const std::string& method, grpc::ServerContext& context);
  grpc::Status play(grpc::ServerContext& context, grpc::ServerWriter<Event>& writer);

  mutable std::mutex mutex_;
  std::vector<std::string> calls_;
  v1::CompleteRequest request_;
  std::map<std::string, std::string> metadata_;
  std::optional<std::chrono::seconds> deadline_;
  std::string address_;
  std::unique_ptr<Inference> inference_;
  std::unique_ptr<Models> models_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace inferwire::tests
