import dev.inferwire.CompletionStream;
import dev.inferwire.InferwireClient;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.Sampling;
import dev.inferwire.v1.Stopping;

/** Prints an answer as it is made. Arguments: the server's address, then the prompt. */
final class StreamAnswer {
  private StreamAnswer() {}

  public static void main(String[] arguments) {
    CompleteRequest request =
        CompleteRequest.newBuilder()
            .setPrompt(arguments[1])
            .setSampling(Sampling.newBuilder().setTemperature(0))
            .setStopping(Stopping.newBuilder().setMaxTokens(64))
            .build();
    try (InferwireClient client = InferwireClient.connect(arguments[0]);
        CompletionStream stream = client.stream(request)) {
      stream.text().forEach(System.out::print);
    }
    System.out.println();
  }
}
