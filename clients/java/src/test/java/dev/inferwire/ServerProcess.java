package dev.inferwire;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * The real server with its scripted backend, as a process of its own.
 *
 * <p>INFERWIRE_SERVER is the command line of the program {@code inferwire}; without it the one in the environment of
 * this repository is taken.
 */
final class ServerProcess implements AutoCloseable {
  private static final Path INSTALLED = Path.of("../../.venv/bin/inferwire");

  private final Process process;
  private final String address;

  ServerProcess() {
    try {
      ProcessBuilder builder =
          new ProcessBuilder(command()).redirectError(Path.of("target/server.log").toFile());
      // The server takes every variable of this prefix for an option of its own.
      builder.environment().remove("INFERWIRE_SERVER");
      process = builder.start();
      BufferedReader output = process.inputReader(StandardCharsets.UTF_8);
      String line = output.readLine();
      if (line == null || !line.contains(" listens on ")) {
        process.destroyForcibly();
        throw new IllegalStateException("the server did not start; target/server.log says why");
      }
      address = line.substring(line.lastIndexOf(' ') + 1);
      Thread reader = new Thread(() -> output.lines().forEach(rest -> {}), "output of the server");
      reader.setDaemon(true);
      reader.start();
    } catch (IOException failure) {
      throw new UncheckedIOException(failure);
    }
  }

  private static List<String> command() {
    List<String> command = new ArrayList<>();
    String said = System.getenv("INFERWIRE_SERVER");
    if (said != null && !said.isBlank()) {
      command.addAll(List.of(said.strip().split("\\s+")));
    } else if (Files.isExecutable(INSTALLED)) {
      command.add(INSTALLED.toString());
    } else {
      throw new IllegalStateException("no server: run 'make setup' in the repository, or set INFERWIRE_SERVER");
    }
    command.addAll(List.of("serve", "--scripted", "--address", "127.0.0.1:0"));
    return command;
  }

  /** Returns where it listens. */
  String address() {
    return address;
  }

  @Override
  public void close() {
    process.destroyForcibly();
  }
}
