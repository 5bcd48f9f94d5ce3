// Prints an answer as it is made: inferwire-stream "Once upon a time" [127.0.0.1:50051]

#include <inferwire/client.h>

#include <iostream>

int main(int argc, char** argv) {
  inferwire::v1::CompleteRequest request;
  request.set_prompt(argc > 1 ? argv[1] : "Once upon a time");
  request.mutable_stopping()->set_max_tokens(64);
  request.mutable_sampling()->set_temperature(0);

  try {
    const inferwire::Client client = inferwire::connect(argc > 2 ? argv[2] : "127.0.0.1:50051");
    for (const std::string& piece : client.stream(request).text()) std::cout << piece << std::flush;
    std::cout << '\n';
  } catch (const inferwire::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
