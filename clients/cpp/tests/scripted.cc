#include "scripted.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <thread>

#include "inferwire/client/status_details.pb.h"

namespace inferwire::tests {
namespace {

void add_detail(status_details::Status& status, const std::string& name, const google::protobuf::Message& message) {
  google::protobuf::Any& any = *status.add_details();
  any.set_type_url("type.googleapis.com/google.rpc." + name);
  any.set_value(message.SerializeAsString());
}

void wait_until_gone(const grpc::ServerContext& context) {
  // A synchronous server tells that the caller is gone only when it is asked.
  while (!context.IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

std::string Refusal::details() const {
  if (raw_details) return *raw_details;
  if (reason.empty()) return {};
  status_details::Status status;
  status.set_code(code);
  status.set_message(message);
  status_details::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain(domain);
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  add_detail(status, "ErrorInfo", info);
  if (retry_delay) {
    status_details::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_delay->count() / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int>(retry_delay->count() % 1000) * 1'000'000);
    add_detail(status, "RetryInfo", retry);
  }
  if (!violations.empty()) {
    status_details::BadRequest request;
    for (const Violation& violation : violations) {
      status_details::BadRequest::FieldViolation& one = *request.add_field_violations();
      one.set_field(violation.field);
      one.set_description(violation.description);
    }
    add_detail(status, "BadRequest", request);
  }
  if (!resource.empty()) {
    status_details::ResourceInfo info;
    info.set_resource_name(resource);
    add_detail(status, "ResourceInfo", info);
  }
  return status.SerializeAsString();
}

grpc::Status Refusal::tell(grpc::ServerContext& context) const {
  if (!pushback.empty()) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", pushback);
  } else if (retry_delay) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(retry_delay->count()));
  }
  return grpc::Status(code, message, details());
}

class ScriptedServer::Inference final : public v1::InferenceService::Service {
 public:
  explicit Inference(ScriptedServer& server) : server_(server) {}

  grpc::Status Complete(grpc::ServerContext* context, const v1::CompleteRequest* request,
                        v1::CompleteResponse*) override {
    remember(*request);
    return server_.answer("Complete", *context);
  }
  grpc::Status StreamComplete(grpc::ServerContext* context, const v1::CompleteRequest* request,
                              grpc::ServerWriter<Event>* writer) override {
    remember(*request);
    server_.note("StreamComplete", *context);
    return server_.play(*context, *writer);
  }
  grpc::Status Embed(grpc::ServerContext* context, const v1::EmbedRequest*, v1::EmbedResponse*) override {
    return server_.answer("Embed", *context);
  }
  grpc::Status CountTokens(grpc::ServerContext* context, const v1::CompleteRequest* request,
                           v1::CountTokensResponse*) override {
    remember(*request);
    return server_.answer("CountTokens", *context);
  }
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest*, v1::TokenizeResponse*) override {
    return server_.answer("Tokenize", *context);
  }
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest*,
                          v1::DetokenizeResponse*) override {
    return server_.answer("Detokenize", *context);
  }
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest*,
                          v1::ListModelsResponse*) override {
    return server_.answer("ListModels", *context);
  }
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest*, v1::GetModelResponse*) override {
    return server_.answer("GetModel", *context);
  }
  grpc::Status WatchModels(grpc::ServerContext* context, const v1::WatchModelsRequest*,
                           grpc::ServerWriter<v1::WatchModelsResponse>* writer) override {
    v1::WatchModelsResponse snapshot;
    snapshot.set_revision(1);
    writer->Write(snapshot);
    return server_.answer("WatchModels", *context);
  }
  grpc::Status ListBackends(grpc::ServerContext* context, const v1::ListBackendsRequest*,
                            v1::ListBackendsResponse*) override {
    return server_.answer("ListBackends", *context);
  }
  grpc::Status Health(grpc::ServerContext* context, const v1::HealthRequest*, v1::HealthResponse*) override {
    return server_.answer("Health", *context);
  }

 private:
  void remember(const v1::CompleteRequest& request) {
    const std::lock_guard lock(server_.mutex_);
    server_.request_ = request;
  }

  ScriptedServer& server_;
};

class ScriptedServer::Models final : public v1::ModelService::Service {
 public:
  explicit Models(ScriptedServer& server) : server_(server) {}

  grpc::Status Load(grpc::ServerContext* context, const v1::LoadRequest*, v1::LoadResponse*) override {
    return server_.answer("Load", *context);
  }
  grpc::Status StreamLoad(grpc::ServerContext* context, const v1::LoadRequest*,
                          grpc::ServerWriter<v1::StreamLoadResponse>* writer) override {
    for (const v1::StreamLoadResponse& event : server_.load) writer->Write(event);
    return server_.answer("StreamLoad", *context);
  }
  grpc::Status Unload(grpc::ServerContext* context, const v1::UnloadRequest*, v1::UnloadResponse*) override {
    return server_.answer("Unload", *context);
  }

 private:
  ScriptedServer& server_;
};

ScriptedServer::ScriptedServer(const std::shared_ptr<grpc::ServerCredentials>& credentials)
    : inference_(std::make_unique<Inference>(*this)), models_(std::make_unique<Models>(*this)) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", credentials ? credentials : grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(32 * 1024 * 1024);
  builder.RegisterService(inference_.get());
  builder.RegisterService(models_.get());
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
}

ScriptedServer::~ScriptedServer() { server_->Shutdown(std::chrono::system_clock::now()); }

void ScriptedServer::set_serving(bool is_serving) {
  server_->GetHealthCheckService()->SetServingStatus("inferwire.v1.InferenceService", is_serving);
}

std::vector<std::string> ScriptedServer::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

v1::CompleteRequest ScriptedServer::request() const {
  const std::lock_guard lock(mutex_);
  return request_;
}

std::string ScriptedServer::metadata(const std::string& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? "" : found->second;
}

std::optional<std::chrono::seconds> ScriptedServer::deadline() const {
  const std::lock_guard lock(mutex_);
  return deadline_;
}

void ScriptedServer::note(const std::string& method, const grpc::ServerContext& context) {
  const std::lock_guard lock(mutex_);
  calls_.push_back(method);
  metadata_.clear();
  for (const auto& [key, value] : context.client_metadata()) {
    metadata_.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
  }
  deadline_.reset();
  if (context.deadline() != std::chrono::system_clock::time_point::max()) {
    deadline_ = std::chrono::duration_cast<std::chrono::seconds>(context.deadline() - std::chrono::system_clock::now());
  }
}

grpc::Status ScriptedServer::answer(const std::string& method, grpc::ServerContext& context) {
  note(method, context);
  const auto refusal = refusals.find(method);
  return refusal == refusals.end() ? grpc::Status::OK : refusal->second.tell(context);
}

grpc::Status ScriptedServer::play(grpc::ServerContext& context, grpc::ServerWriter<Event>& writer) {
  std::vector<Step> script;
  {
    const std::lock_guard lock(mutex_);
    script = streams.front();
    if (streams.size() > 1) streams.erase(streams.begin());
  }
  for (const Step& step : script) {
    if (const auto* event = std::get_if<Event>(&step)) {
      writer.Write(*event);
    } else if (const auto* refusal = std::get_if<Refusal>(&step)) {
      return refusal->tell(context);
    } else if (const auto* hang = std::get_if<std::shared_ptr<Hang>>(&step)) {
      wait_until_gone(context);
      (*hang)->gone.set_value();
    } else if (const auto* flood = std::get_if<std::shared_ptr<Flood>>(&step)) {
      while (writer.Write((*flood)->event)) {
      }
      (*flood)->gone.set_value();
    }
  }
  return grpc::Status::OK;
}

}  // namespace inferwire::tests
