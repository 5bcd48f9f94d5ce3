// Events made by hand, and equality of messages as a test wants it.
#pragma once

#include <google/protobuf/util/message_differencer.h>

#include <string>
#include <type_traits>
#include <vector>

#include "inferwire/v1/inference.pb.h"

// Beside the messages, so that googletest finds them.
namespace inferwire::v1 {

template <class M>
std::enable_if_t<std::is_base_of_v<google::protobuf::Message, M>, bool> operator==(const M& left, const M& right) {
  return google::protobuf::util::MessageDifferencer::Equals(left, right);
}

}  // namespace inferwire::v1

namespace inferwire::tests {

using Event = v1::StreamCompleteResponse;

inline Event started() {
  Event event;
  event.mutable_started()->set_id("r1");
  event.mutable_started()->set_model("demo");
  return event;
}

inline Event text(const std::string& piece) {
  Event event;
  event.mutable_text()->set_text(piece);
  return event;
}

inline Event reasoning(const std::string& piece, const std::string& signature = {}) {
  Event event;
  event.mutable_reasoning()->set_text(piece);
  event.mutable_reasoning()->set_signature(signature);
  return event;
}

inline Event tool_call(std::uint32_t index, const std::string& arguments, const std::string& id = {},
                       const std::string& name = {}) {
  Event event;
  event.mutable_tool_call()->set_index(index);
  event.mutable_tool_call()->set_id(id);
  event.mutable_tool_call()->set_name(name);
  event.mutable_tool_call()->set_arguments(arguments);
  return event;
}

inline Event completion() {
  Event event;
  event.mutable_completion()->set_finish_reason(v1::FINISH_REASON_STOP);
  return event;
}

/// Field 127 is in no version of the contract: what an older client sees of a newer server's event.
inline Event unknown_event() {
  Event event;
  event.ParseFromString("\xfa\x07\x03new");
  return event;
}

/// A whole lawful stream.
inline std::vector<Event> answer(const std::vector<std::string>& pieces) {
  std::vector<Event> events = {started()};
  for (const std::string& piece : pieces) events.push_back(text(piece));
  events.push_back(completion());
  return events;
}

inline v1::CompleteRequest prompt(const std::string& text) {
  v1::CompleteRequest request;
  request.set_prompt(text);
  return request;
}

}  // namespace inferwire::tests
