/// @file
/// A stream into the unary answer. Owns what "the concatenation of the deltas" means. Knows messages only, never gRPC.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "inferwire/v1/inference.pb.h"

namespace inferwire {

/// Takes the events of one stream in order and gives the answer that Complete would have given.
///
/// Parts stand in the order of their first delta:
///
/// - text extends the last part when that is text, else it begins one;
/// - reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
/// - a tool call is one part wherever its deltas stand, told apart by its index.
///
/// Token ids and log probabilities concatenate over all events, those of the completion included. Events of an unknown
/// kind and progress leave no trace.
class Gatherer {
 public:
  Gatherer();

  /// Takes the next event.
  void add(const v1::StreamCompleteResponse& event);

  /// The answer so far. `completion` is unset until its event came.
  const v1::CompleteResponse& response() const& { return response_; }
  v1::CompleteResponse response() && { return std::move(response_); }

  /// Such as "<Gatherer [started | parts 1 | token ids 0]>".
  std::string describe() const;

 private:
  void add_text(const v1::TextDelta& delta);
  void add_reasoning(const v1::ReasoningDelta& delta);
  void add_tool_call(const v1::ToolCallDelta& delta);

  v1::CompleteResponse response_;
  /// Where the part of each tool call stands, by the call's index.
  std::map<std::uint32_t, int> calls_;
};

/// Reads a range of events to its end and returns the answer.
///
/// @throws std::invalid_argument they end without a completion. A CompletionStream throws its own Error before that.
template <class Range>
v1::CompleteResponse gather(Range&& events) {
  Gatherer gatherer;
  for (const v1::StreamCompleteResponse& event : events) gatherer.add(event);
  if (!gatherer.response().has_completion()) {
    throw std::invalid_argument("the events end without a completion; the answer would not be whole");
  }
  return std::move(gatherer).response();
}

}  // namespace inferwire
