// Calls a server as lines of JSON on the standard input say, and tells on the standard output what the caller saw.
// Uses the client as any program would.

#include <absl/strings/escaping.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/json_util.h>

#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "inferwire/client.h"
#include "line.pb.h"

namespace inferwire::conformance {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;
using grpc::health::v1::Health;
using std::chrono::milliseconds;

/// What the caller saw of a call.
struct Answer {
  std::vector<std::string> messages;
  std::optional<Error> error;
  bool left_early = false;
};

template <class Q>
Q parse(const std::string& bytes) {
  Q request;
  if (!request.ParseFromString(bytes)) {
    throw std::invalid_argument("the request is no " + std::string(request.GetDescriptor()->full_name()));
  }
  return request;
}

CallOptions options_of(const Call& call) {
  CallOptions options;
  if (call.has_timeout_ms()) options.timeout = milliseconds(call.timeout_ms());
  options.metadata.insert(call.metadata().begin(), call.metadata().end());
  return options;
}

/// Reads a stream into the answer, as far as the line wants it.
template <class S>
void read(S stream, const Call& call, Answer& answer) {
  const auto is_enough = [&] { return call.has_cancel_after() && answer.messages.size() >= call.cancel_after(); };
  while (!is_enough()) {
    const auto* event = stream.next();
    if (event == nullptr) return;
    answer.messages.push_back(event->SerializeAsString());
  }
  answer.left_early = stream.state() == State::open;
}

using Method = std::function<void(const Client&, const Call&, Answer&)>;

template <class Q, class R>
Method unary(R (Client::*method)(const Q&, const CallOptions&) const) {
  return [method](const Client& client, const Call& call, Answer& answer) {
    answer.messages.push_back((client.*method)(parse<Q>(call.request()), options_of(call)).SerializeAsString());
  };
}

template <class Q, class S>
Method streaming(S (Client::*method)(const Q&, const CallOptions&) const) {
  return [method](const Client& client, const Call& call, Answer& answer) {
    read((client.*method)(parse<Q>(call.request()), options_of(call)), call, answer);
  };
}

void gather_stream(const Client& client, const Call& call, Answer& answer) {
  const auto request = parse<v1::CompleteRequest>(call.request());
  answer.messages.push_back(client.stream(request, options_of(call)).gather().SerializeAsString());
}

void check_health(const Client& client, const Call& call, Answer& answer) {
  const auto stub = Health::NewStub(client.channel());
  const auto request = parse<grpc::health::v1::HealthCheckRequest>(call.request());
  answer.messages.push_back(client.call(*stub, &Health::Stub::Check, request, options_of(call)).SerializeAsString());
}

void watch_health(const Client& client, const Call& call, Answer& answer) {
  const auto stub = Health::NewStub(client.channel());
  const auto request = parse<grpc::health::v1::HealthCheckRequest>(call.request());
  CallOptions options = options_of(call);
  if (!options.timeout) options.timeout = no_timeout;
  read(client.open(*stub, &Health::Stub::Watch, request, options), call, answer);
}

const std::map<std::string, Method>& methods() {
  static const std::map<std::string, Method> methods = {
      {"Complete", unary(&Client::complete)},
      {"StreamComplete", streaming(&Client::stream)},
      {"GatherStream", gather_stream},
      {"Embed", unary(&Client::embed)},
      {"CountTokens", unary(&Client::count_tokens)},
      {"Tokenize", unary(&Client::tokenize)},
      {"Detokenize", unary(&Client::detokenize)},
      {"ListModels", unary(&Client::list_models)},
      {"GetModel", unary(&Client::get_model)},
      {"WatchModels", streaming(&Client::watch_models)},
      {"ListBackends", unary(&Client::list_backends)},
      {"Health", unary(&Client::health)},
      {"Load", unary(&Client::load)},
      {"StreamLoad", streaming(&Client::stream_load)},
      {"Unload", unary(&Client::unload)},
      {"HealthCheck", check_health},
      {"HealthWatch", watch_health},
  };
  return methods;
}

Client connect_as(const Connect& said) {
  ConnectOptions options;
  if (said.tls().has_struct_value()) {
    const auto& fields = said.tls().struct_value().fields();
    const auto field = [&fields](const char* name) {
      const auto found = fields.find(name);
      return found == fields.end() ? std::string() : found->second.string_value();
    };
    options.tls = Tls::from_files(field("ca"), field("cert"), field("key"));
    options.tls->server_name = field("server_name");
  } else {
    // False says plain text; absent leaves it to the target.
    options.plain_text = said.tls().kind_case() == Value::kBoolValue && !said.tls().bool_value();
  }
  options.token = said.token();
  if (said.has_default_timeout_ms()) options.default_timeout = milliseconds(said.default_timeout_ms());
  options.retry = !said.has_retry() || said.retry();
  return connect(said.target(), options);
}

/// The client of a `connect` object; the same object has the same client.
const Client& client_of(const Connect& said, std::map<std::string, Client>& clients) {
  std::string key;
  {
    google::protobuf::io::StringOutputStream text(&key);
    google::protobuf::io::CodedOutputStream out(&text);
    out.SetSerializationDeterministic(true);
    said.SerializeToCodedStream(&out);
  }
  const auto found = clients.find(key);
  return found != clients.end() ? found->second : clients.emplace(key, connect_as(said)).first->second;
}

Value null() {
  Value value;
  value.set_null_value(google::protobuf::NULL_VALUE);
  return value;
}

Value value_of(const std::string& text) {
  Value value;
  value.set_string_value(text);
  return value;
}

Value value_of(const Error& error) {
  Value value;
  auto& fields = *value.mutable_struct_value()->mutable_fields();
  fields["code"] = value_of(std::string(name_of(error.code)));
  fields["reason"] = value_of(error.reason);
  fields["message"] = value_of(error.message);
  fields["resource"] = value_of(error.resource);
  auto& metadata = *fields["metadata"].mutable_struct_value()->mutable_fields();
  for (const auto& [key, text] : error.metadata) metadata[key] = value_of(text);
  fields["retry_delay_ms"] = null();
  if (error.retry_delay) {
    fields["retry_delay_ms"].set_number_value(static_cast<double>(error.retry_delay->count()));
  }
  auto& violations = *fields["violations"].mutable_list_value();
  for (const Violation& violation : error.violations) {
    auto& one = *violations.add_values()->mutable_struct_value()->mutable_fields();
    one["field"] = value_of(violation.field);
    one["description"] = value_of(violation.description);
  }
  return value;
}

Struct line_of(const Value& id, const Answer& answer) {
  Struct line;
  auto& fields = *line.mutable_fields();
  fields["id"] = id;
  auto& messages = *fields["messages"].mutable_list_value();
  for (const std::string& message : answer.messages) *messages.add_values() = value_of(absl::Base64Escape(message));
  fields["error"] = answer.error ? value_of(*answer.error) : null();
  fields["left_early"].set_bool_value(answer.left_early);
  return line;
}

/// The answer to a line that cannot be read or done.
Struct line_of(const Value& id, const std::string& fault) {
  Struct line;
  (*line.mutable_fields())["id"] = id;
  (*line.mutable_fields())["fault"] = value_of(fault);
  return line;
}

void write(const Struct& line) {
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(line, &text);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  std::cout << text << std::endl;
}

/// The id of a line that is no Line, as far as it can be read.
Value id_of(const std::string& text) {
  Struct line;
  if (!google::protobuf::util::JsonStringToMessage(text, &line).ok() || line.fields().count("id") == 0) return null();
  return line.fields().at("id");
}

Answer answer_to(const Line& line, std::map<std::string, Client>& clients) {
  const auto method = methods().find(line.call().method());
  if (method == methods().end()) throw std::invalid_argument("no method " + line.call().method());
  const Client& client = client_of(line.connect(), clients);
  Answer answer;
  try {
    method->second(client, line.call(), answer);
  } catch (const Error& error) {
    answer.error = error;
  }
  return answer;
}

void serve() {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  std::map<std::string, Client> clients;
  for (std::string text; std::getline(std::cin, text);) {
    Line line;
    const auto status = google::protobuf::util::JsonStringToMessage(text, &line, options);
    if (!status.ok()) {
      write(line_of(id_of(text), status.ToString()));
      continue;
    }
    try {
      write(line_of(line.id(), answer_to(line, clients)));
    } catch (const std::exception& error) {
      write(line_of(line.id(), error.what()));
    }
  }
}

}  // namespace
}  // namespace inferwire::conformance

int main() { inferwire::conformance::serve(); }
