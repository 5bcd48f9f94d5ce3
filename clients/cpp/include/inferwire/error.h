/// @file
/// The one exception of this library, and the only place that reads a gRPC status.
#pragma once

#include <grpcpp/support/status.h>

#include <chrono>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "inferwire/v1/error_reason.pb.h"

namespace inferwire {

/// A field of the request that the server refuses, and why.
struct Violation {
  std::string field;        ///< The field's path, such as "chat.messages[0].role".
  std::string description;  ///< Why it is refused.

  friend bool operator==(const Violation& left, const Violation& right) {
    return left.field == right.field && left.description == right.description;
  }
};

/// A call failed. `code` is for who retries, `reason` for who branches, `message` for people.
class Error : public std::exception {
 public:
  /// Makes the failure that a client itself tells, without details.
  explicit Error(grpc::StatusCode code, std::string reason = {}, std::string message = {});

  /// Reads the status of a call. Details that are absent, foreign or garbage leave only code and message.
  explicit Error(const grpc::Status& status);

  grpc::StatusCode code;
  /// The name of an ErrorReason without its prefix, such as "QUEUE_FULL", also one that this version does not know;
  /// empty when the failure is not the service's own: no server there, a proxy's answer, the transport.
  std::string reason;
  std::string message;
  /// What the reason documents, such as {"model": "demo", "queueCapacity": "64"}.
  std::map<std::string, std::string> metadata;
  /// After this time the server wants to be asked again; unset: it does not say.
  std::optional<std::chrono::milliseconds> retry_delay;
  std::vector<Violation> violations;
  /// The name of the thing that was not found, such as a model's; empty when the server names none.
  std::string resource;

  /// The reason as the contract's enum; unset when there is none or this version does not know it.
  std::optional<v1::ErrorReason> known_reason() const;

  /// "REASON: message; field: description", with the code's name where there is no reason.
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  void read_details(const std::string& data);
  void write_what();

  std::string what_;
};

/// The canonical name of a code, such as "UNAVAILABLE".
std::string_view name_of(grpc::StatusCode code);

/// The failure of a stream that ended with OK but without its last event.
Error stream_truncated();

}  // namespace inferwire
