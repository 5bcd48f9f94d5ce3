package dev.inferwire;

import static dev.inferwire.FakeServer.refused;
import static dev.inferwire.FakeServer.whole;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Message;
import dev.inferwire.FakeServer.Refusal;
import dev.inferwire.v1.CompleteRequest;
import dev.inferwire.v1.CompleteResponse;
import dev.inferwire.v1.ListModelsResponse;
import dev.inferwire.v1.LoadRequest;
import dev.inferwire.v1.LoadResponse;
import dev.inferwire.v1.StreamLoadResponse;
import dev.inferwire.v1.WatchModelsResponse;
import io.grpc.ServerCredentials;
import io.grpc.Status;
import io.grpc.TlsServerCredentials;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Where a client calls and how. */
class ConnectTest {
  private static final CompleteRequest REQUEST = CompleteRequest.newBuilder().setPrompt("Hi").build();
  private static final Message ANSWER = CompleteResponse.getDefaultInstance();

  /** Without a word about TLS, only a target on this very machine is called in plain text. */
  @ParameterizedTest
  @CsvSource({
    "127.0.0.1:50051, true",
    "127.8.9.10:50051, true",
    "localhost:50051, true",
    "localhost, true",
    "[::1]:50051, true",
    "::1, true",
    "dns:///localhost:50051, true",
    "dns:localhost:50051, true",
    "ipv4:127.0.0.1:50051, true",
    "'ipv4:127.0.0.1:50051,127.0.0.1:50052', true",
    "'ipv4:127.0.0.1:50051,10.0.0.1:50051', false",
    "unix:/run/inferwire.sock, true",
    "10.0.0.1:50051, false",
    "127.0.0.256:50051, false",
    "127.1:50051, false",
    "inferwire.example:443, false",
    "localhost.example:443, false",
    "dns:///inferwire.example:443, false",
    "dns://127.0.0.1/inferwire.example:443, false",
    "[2001:db8::1]:443, false",
    "'', false",
  })
  void plainTextStaysOnThisMachine(String target, boolean isLocal) {
    assertEquals(isLocal, Endpoint.isLocal(target));
  }

  /** A client tells where and how it calls, and never its token. */
  @Test
  void tellsItsWay() {
    try (InferwireClient local = InferwireClient.connect("127.0.0.1:1");
        InferwireClient remote = InferwireClient.builder("10.0.0.1:1").token("secret").build();
        InferwireClient plain = InferwireClient.builder("10.0.0.1:1").tls(false).build()) {
      assertEquals("<InferwireClient [127.0.0.1:1 | plain text | no token]>", local.toString());
      assertEquals("<InferwireClient [10.0.0.1:1 | TLS | token]>", remote.toString());
      assertEquals("<InferwireClient [10.0.0.1:1 | plain text | no token]>", plain.toString());
    }
  }

  /** Every call carries the token; a call without a timeout of its own has the client's. */
  @Test
  void carriesTokenRequestIdAndDeadline() {
    try (FakeServer server = new FakeServer().answers(whole(ANSWER));
        InferwireClient client =
            InferwireClient.builder(server.address())
                .token("secret")
                .defaultTimeout(Duration.ofSeconds(50))
                .build()) {
      client.withRequestId("mine").withMetadata("x-more", "too").complete(REQUEST);
      assertEquals("Bearer secret", server.metadata("authorization"));
      assertEquals("mine", server.metadata("x-request-id"));
      assertEquals("too", server.metadata("x-more"));
      assertTrue(server.deadlineSeconds() > 20 && server.deadlineSeconds() <= 50);
      client.withTimeout(InferwireClient.NO_TIMEOUT).complete(REQUEST);
      assertNull(server.deadlineSeconds());
      assertNull(server.metadata("x-request-id"));
    }
  }

  /** Loads and watches end when they end, unless the caller says otherwise. */
  @Test
  void loadsAndWatchesHaveNoDeadline() {
    LoadRequest load = LoadRequest.newBuilder().setModel("demo").build();
    StreamLoadResponse loaded =
        StreamLoadResponse.newBuilder().setLoaded(LoadResponse.getDefaultInstance()).build();
    try (FakeServer server = new FakeServer();
        InferwireClient client = InferwireClient.connect(server.address())) {
      server.answers(
          whole(LoadResponse.getDefaultInstance()),
          whole(loaded),
          whole(WatchModelsResponse.getDefaultInstance()),
          whole(LoadResponse.getDefaultInstance()));
      client.load(load);
      assertNull(server.deadlineSeconds());
      client.streamLoad(load).forEach(event -> {});
      assertNull(server.deadlineSeconds());
      client.watchModels().forEach(event -> {});
      assertNull(server.deadlineSeconds());
      client.withTimeout(Duration.ofSeconds(50)).load(load);
      assertTrue(server.deadlineSeconds() <= 50);
    }
  }

  /** A load changes the server: to repeat it is the caller's decision. */
  @Test
  void aLoadIsNotRepeated() {
    try (FakeServer server = new FakeServer();
        InferwireClient client = InferwireClient.connect(server.address())) {
      server.answers(refused(Refusal.of(Status.UNAVAILABLE, "MODEL_UNLOADING")));
      assertThrows(InferwireException.class, () -> client.load(LoadRequest.getDefaultInstance()));
      assertEquals(1, server.requests.size());
    }
  }

  /** A large prompt is sent again like a small one. */
  @Test
  void aLargeRequestIsRepeated() {
    CompleteRequest large = CompleteRequest.newBuilder().setPrompt("a".repeat(30 << 20)).build();
    Refusal notYet = Refusal.of(Status.UNAVAILABLE, "MODEL_LOADING").after(Duration.ofMillis(10));
    try (FakeServer server = new FakeServer().answers(refused(notYet), whole(ANSWER));
        InferwireClient client = InferwireClient.connect(server.address())) {
      client.complete(large);
      assertEquals(2, server.requests.size());
    }
  }

  /** A message over 32 MiB is refused before it is sent. */
  @Test
  void aTooLargeRequestIsNotSent() {
    CompleteRequest tooLarge = CompleteRequest.newBuilder().setPrompt("a".repeat(32 << 20)).build();
    try (FakeServer server = new FakeServer().answers(whole(ANSWER));
        InferwireClient client = InferwireClient.connect(server.address())) {
      for (Consumer<CompleteRequest> call :
          List.<Consumer<CompleteRequest>>of(client::complete, client::stream)) {
        InferwireException error = assertThrows(InferwireException.class, () -> call.accept(tooLarge));
        assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
      }
      assertEquals(0, server.requests.size());
    }
  }

  /** A server that is not there is UNAVAILABLE without a reason; the message says what the system said. */
  @Test
  void noServer() {
    try (InferwireClient client = InferwireClient.connect("127.0.0.1:1")) {
      InferwireException error = assertThrows(InferwireException.class, client::listModels);
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertEquals("", error.reason());
      assertTrue(error.message().contains("refused"), error.message());
    }
  }

  /** With round robin a server that says it is not healthy gets no calls. */
  @Test
  void roundRobinAsksHealthyServersOnly() {
    try (FakeServer server = new FakeServer().answers(whole(ListModelsResponse.getDefaultInstance()))) {
      server.isHealthy(false);
      InferwireClient.Builder balanced =
          InferwireClient.builder(server.address()).roundRobin(true).retry(false);
      try (InferwireClient client = balanced.build()) {
        InferwireException error = assertThrows(InferwireException.class, client::listModels);
        assertEquals(Status.Code.UNAVAILABLE, error.code());
        assertEquals(0, server.requests.size());
      }
      server.isHealthy(true);
      try (InferwireClient client = balanced.build()) {
        client.listModels();
        assertEquals(1, server.requests.size());
      }
    }
  }

  /** A list of addresses is called in turn, each server by its own name, without those that are not healthy. */
  @Test
  void aListOfAddressesIsBalanced() {
    FakeServer.Script models = whole(ListModelsResponse.getDefaultInstance());
    try (FakeServer first = new FakeServer().answers(models);
        FakeServer second = new FakeServer().answers(models)) {
      String target = "ipv4:" + first.address() + "," + second.address();
      try (InferwireClient client = InferwireClient.builder(target).roundRobin(true).build()) {
        while (first.requests.isEmpty() || second.requests.isEmpty()) {
          client.listModels();
        }
        assertEquals(first.address(), first.authority);
        assertEquals(second.address(), second.authority);
        second.isHealthy(false);
        // Two in a row at the first: the second is out of the rotation.
        int before;
        do {
          before = first.requests.size();
          client.listModels();
          client.listModels();
        } while (first.requests.size() != before + 2);
        int left = second.requests.size();
        client.listModels();
        assertEquals(left, second.requests.size());
      }
    }
  }

  /** What is no list of addresses is refused at once, and no name is looked up. */
  @ParameterizedTest
  @ValueSource(strings = {"ipv4:localhost:1", "ipv4:127.0.0.1", "ipv4:127.0.0.1:x", "ipv4:127.0.0.1:1,", "ipv6:[::1]"})
  void whatIsNoAddressIsRefused(String target) {
    assertThrows(
        IllegalArgumentException.class, () -> InferwireClient.builder(target).tls(false).build().close());
  }

  /** The server shows a certificate of the given authority, and gets the client's own. */
  @Test
  void encryptsAndShowsItsCertificate(@TempDir Path folder) throws IOException {
    Certificate ofServer = Certificate.make(folder, "server", "inferwire.example");
    Certificate ofClient = Certificate.make(folder, "client", "client.example");
    ServerCredentials credentials =
        TlsServerCredentials.newBuilder()
            .keyManager(ofServer.chain().toFile(), ofServer.key().toFile())
            .trustManager(ofClient.chain().toFile())
            .clientAuth(TlsServerCredentials.ClientAuth.REQUIRE)
            .build();
    try (FakeServer server = new FakeServer(credentials).answers(whole(ANSWER))) {
      InferwireClient.Builder known =
          InferwireClient.builder(server.address()).certificateAuthority(ofServer.chain()).retry(false);
      try (InferwireClient wrongName = known.build()) {
        assertEquals(Status.Code.UNAVAILABLE, refusal(wrongName).code());
      }
      known.serverName("inferwire.example");
      try (InferwireClient unknown = known.build()) {
        assertEquals(Status.Code.UNAVAILABLE, refusal(unknown).code());
      }
      known.clientCertificate(ofClient.chain(), ofClient.key());
      try (InferwireClient client = known.build()) {
        assertEquals(ANSWER, client.complete(REQUEST));
        assertTrue(client.toString().contains("TLS"));
      }
    }
  }

  /** A certificate that is not there is told at once. */
  @Test
  void aMissingCertificateIsTold() {
    InferwireClient.Builder builder =
        InferwireClient.builder("127.0.0.1:1").certificateAuthority(Path.of("nowhere.pem"));
    assertThrows(UncheckedIOException.class, builder::build);
  }

  private static InferwireException refusal(InferwireClient client) {
    return assertThrows(InferwireException.class, () -> client.complete(REQUEST));
  }
}
