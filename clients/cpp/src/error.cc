#include "inferwire/error.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "inferwire/client/status_details.pb.h"

namespace inferwire {
namespace {

constexpr char domain[] = "inferwire.dev";

// The largest Duration, about 10000 years: beyond it lies garbage that would overflow.
constexpr std::int64_t max_duration_seconds = 315'576'000'000;

/// Reads `any` into `message` when it holds the google.rpc type of that name. False: it does, but it is garbage.
template <class M>
bool unpack(const google::protobuf::Any& any, std::string_view name, M& message) {
  const std::string_view url = any.type_url();
  // Only what follows the last slash is the type's name. Without a slash npos + 1 is 0: the whole.
  if (url.substr(url.rfind('/') + 1) != name) return true;
  return message.ParseFromString(any.value());
}

std::chrono::milliseconds rounded_up(const google::protobuf::Duration& duration) {
  const std::int64_t seconds = std::clamp(duration.seconds(), -max_duration_seconds, max_duration_seconds);
  return std::chrono::seconds(seconds) +
         std::chrono::ceil<std::chrono::milliseconds>(std::chrono::nanoseconds(duration.nanos()));
}

}  // namespace

Error::Error(grpc::StatusCode code, std::string reason, std::string message)
    : code(code), reason(std::move(reason)), message(std::move(message)) {
  write_what();
}

Error::Error(const grpc::Status& status) : code(status.error_code()), message(status.error_message()) {
  read_details(status.error_details());
  write_what();
}

std::optional<v1::ErrorReason> Error::known_reason() const {
  v1::ErrorReason value = v1::ERROR_REASON_UNSPECIFIED;
  if (!v1::ErrorReason_Parse("ERROR_REASON_" + reason, &value) || value == v1::ERROR_REASON_UNSPECIFIED) {
    return std::nullopt;
  }
  return value;
}

void Error::read_details(const std::string& data) {
  status_details::Status status;
  status_details::ErrorInfo info;
  status_details::RetryInfo retry;
  status_details::BadRequest request;
  status_details::ResourceInfo found;
  if (!status.ParseFromString(data)) return;
  for (const google::protobuf::Any& detail : status.details()) {
    if (!unpack(detail, "google.rpc.ErrorInfo", info) || !unpack(detail, "google.rpc.RetryInfo", retry) ||
        !unpack(detail, "google.rpc.BadRequest", request) || !unpack(detail, "google.rpc.ResourceInfo", found)) {
      return;
    }
  }
  if (info.domain() == domain) {
    reason = info.reason();
    metadata.insert(info.metadata().begin(), info.metadata().end());
  }
  if (retry.has_retry_delay()) retry_delay = rounded_up(retry.retry_delay());
  for (const status_details::BadRequest::FieldViolation& violation : request.field_violations()) {
    violations.push_back({violation.field(), violation.description()});
  }
  resource = found.resource_name();
}

void Error::write_what() {
  what_ = (reason.empty() ? std::string(name_of(code)) : reason) + ": " + message;
  for (const Violation& violation : violations) what_ += "; " + violation.field + ": " + violation.description;
}

std::string_view name_of(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return "OK";
    case grpc::StatusCode::CANCELLED:
      return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "UNAUTHENTICATED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case grpc::StatusCode::ABORTED:
      return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case grpc::StatusCode::INTERNAL:
      return "INTERNAL";
    case grpc::StatusCode::UNAVAILABLE:
      return "UNAVAILABLE";
    case grpc::StatusCode::DATA_LOSS:
      return "DATA_LOSS";
    default:
      return "UNKNOWN";
  }
}

Error stream_truncated() {
  return Error(grpc::StatusCode::ABORTED, "STREAM_TRUNCATED",
               "the stream ended without its last event; the answer may be cut short");
}

}  // namespace inferwire
