#include "inferwire/stream.h"

namespace inferwire {

std::string_view name_of(State state) {
  switch (state) {
    case State::open:
      return "open";
    case State::completed:
      return "completed";
    case State::failed:
      return "failed";
    case State::cancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace inferwire
