#include "inferwire/gather.h"

namespace inferwire {
namespace {

/// The part that a delta may extend; null when there is none yet.
v1::Part* last_part(v1::Message& message) {
  const int size = message.parts_size();
  return size == 0 ? nullptr : message.mutable_parts(size - 1);
}

template <class D>
void add_tokens(const D& delta, v1::CompleteResponse& response) {
  response.mutable_token_ids()->MergeFrom(delta.token_ids());
  response.mutable_logprobs()->MergeFrom(delta.logprobs());
}

}  // namespace

Gatherer::Gatherer() { response_.mutable_message()->set_role(v1::ROLE_ASSISTANT); }

void Gatherer::add(const v1::StreamCompleteResponse& event) {
  switch (event.event_case()) {
    case v1::StreamCompleteResponse::kStarted:
      *response_.mutable_started() = event.started();
      break;
    case v1::StreamCompleteResponse::kText:
      add_text(event.text());
      break;
    case v1::StreamCompleteResponse::kReasoning:
      add_reasoning(event.reasoning());
      break;
    case v1::StreamCompleteResponse::kToolCall:
      add_tool_call(event.tool_call());
      break;
    case v1::StreamCompleteResponse::kCompletion:
      *response_.mutable_completion() = event.completion();
      add_tokens(event.completion(), response_);
      break;
    case v1::StreamCompleteResponse::kProgress:
    case v1::StreamCompleteResponse::EVENT_NOT_SET:
      break;
  }
}

std::string Gatherer::describe() const {
  const char* state = response_.has_completion() ? "completed" : response_.has_started() ? "started" : "new";
  return std::string("<Gatherer [") + state + " | parts " + std::to_string(response_.message().parts_size()) +
         " | token ids " + std::to_string(response_.token_ids_size()) + "]>";
}

void Gatherer::add_text(const v1::TextDelta& delta) {
  add_tokens(delta, response_);
  if (delta.text().empty()) return;
  v1::Message& message = *response_.mutable_message();
  v1::Part* last = last_part(message);
  if (last == nullptr || !last->has_text()) last = message.add_parts();
  last->mutable_text()->append(delta.text());
}

void Gatherer::add_reasoning(const v1::ReasoningDelta& delta) {
  add_tokens(delta, response_);
  if (delta.text().empty() && delta.signature().empty()) return;
  v1::Message& message = *response_.mutable_message();
  v1::Part* last = last_part(message);
  if (last == nullptr || !last->has_reasoning() || !last->reasoning().signature().empty()) last = message.add_parts();
  last->mutable_reasoning()->mutable_text()->append(delta.text());
  last->mutable_reasoning()->set_signature(delta.signature());
}

void Gatherer::add_tool_call(const v1::ToolCallDelta& delta) {
  add_tokens(delta, response_);
  v1::Message& message = *response_.mutable_message();
  const auto [place, is_new] = calls_.try_emplace(delta.index(), message.parts_size());
  v1::ToolCall& call = *(is_new ? message.add_parts() : message.mutable_parts(place->second))->mutable_tool_call();
  if (call.id().empty()) call.set_id(delta.id());
  if (call.name().empty()) call.set_name(delta.name());
  call.mutable_arguments()->append(delta.arguments());
  call.mutable_signature()->append(delta.signature());
}

}  // namespace inferwire
