// A server of this repository as a process of its own.
#pragma once

#include <sys/types.h>

#include <string>

namespace inferwire::tests {

/// Starts `inferwire serve --scripted` on a free port and ends it with itself. The program is the command line of the
/// environment's INFERWIRE_SERVER, else the one in .venv of the repository.
class LiveServer {
 public:
  /// @throws std::runtime_error the server does not tell its address.
  LiveServer();
  ~LiveServer();
  LiveServer(const LiveServer&) = delete;
  LiveServer& operator=(const LiveServer&) = delete;

  const std::string& address() const { return address_; }

 private:
  pid_t process_ = -1;
  int output_ = -1;
  std::string address_;
};

}  // namespace inferwire::tests
