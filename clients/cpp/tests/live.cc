#include "live.h"

#include <signal.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

namespace inferwire::tests {
namespace {

std::string command_line() {
  const char* named = std::getenv("INFERWIRE_SERVER");
  const std::string program = named != nullptr ? named : INFERWIRE_REPOSITORY "/.venv/bin/inferwire";
  // The server takes every INFERWIRE_... of its environment for its own configuration. `env` takes variables before the
  // program; `exec` leaves one process, which is then the server itself.
  return "unset INFERWIRE_SERVER; exec env " + program + " serve --scripted --address 127.0.0.1:0";
}

std::string first_line(int file) {
  std::string line;
  char character = 0;
  while (read(file, &character, 1) == 1 && character != '\n') line += character;
  return line;
}

}  // namespace

LiveServer::LiveServer() {
  const std::string command = command_line();
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe");
  process_ = fork();
  if (process_ == 0) {
    // A process group of its own, to end whatever the server has started.
    setpgid(0, 0);
#ifdef __linux__
    // It must not outlive a test that is killed.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  output_ = ends[0];
  const std::string line = first_line(output_);
  const std::string before = " listens on ";
  const std::size_t at = line.find(before);
  if (at == std::string::npos) {
    throw std::runtime_error("no server: set INFERWIRE_SERVER, or make .venv; tried " + command);
  }
  address_ = line.substr(at + before.size());
}

LiveServer::~LiveServer() {
  // It would wait for streams and balancers; a test has nothing to wait for.
  kill(-process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  close(output_);
}

}  // namespace inferwire::tests
