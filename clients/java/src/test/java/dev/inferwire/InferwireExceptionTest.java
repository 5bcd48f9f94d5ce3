package dev.inferwire;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import dev.inferwire.FakeServer.Refusal;
import dev.inferwire.InferwireException.Violation;
import dev.inferwire.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.Named;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** What a failure says, sent by a real server over a real channel. */
class InferwireExceptionTest {
  /** Code, reason, metadata, delay, violations and the thing's name arrive as they were sent. */
  @Test
  void saysAllThatTheServerSaid() {
    InferwireException error =
        refused(
            new Refusal(Status.NOT_FOUND.withDescription("no such model"), new Metadata())
                .with(
                    FakeServer.info("inferwire.dev", "MODEL_NOT_FOUND", Map.of("model", "nope")),
                    FakeServer.retry(Duration.ofMillis(1500)),
                    FakeServer.violation("model", "is unknown"),
                    FakeServer.resource("nope")));
    assertEquals(Status.Code.NOT_FOUND, error.code());
    assertEquals("MODEL_NOT_FOUND", error.reason());
    assertEquals(Optional.of(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND), error.knownReason());
    assertEquals("no such model", error.message());
    assertEquals(Map.of("model", "nope"), error.metadata());
    assertEquals(Optional.of(Duration.ofMillis(1500)), error.retryDelay());
    assertEquals(List.of(new Violation("model", "is unknown")), error.violations());
    assertEquals("nope", error.resource());
    assertEquals("MODEL_NOT_FOUND: no such model; model: is unknown", error.getMessage());
  }

  /** A reason of a newer server stays readable. */
  @Test
  void keepsAnUnknownReason() {
    InferwireException error = refused(Refusal.of(Status.ABORTED, "SOLAR_FLARE"));
    assertEquals("SOLAR_FLARE", error.reason());
    assertEquals(Optional.empty(), error.knownReason());
  }

  static Stream<Named<Refusal>> useless() {
    return Stream.of(
        Named.of("absent", plain()),
        Named.of("empty", plain().withRaw(new byte[0])),
        Named.of("garbage", plain().withRaw(new byte[] {-1, -1, -1})),
        Named.of("garbage within", plain().withRaw(garbageWithin())),
        Named.of("foreign", plain().with(FakeServer.info("proxy.example", "NO", Map.of("a", "b")))));
  }

  /** Details that are absent, garbage or of another domain leave code and message alone. */
  @ParameterizedTest
  @MethodSource("useless")
  void livesWithoutDetails(Refusal refusal) {
    InferwireException error = refused(refusal);
    assertEquals(Status.Code.INTERNAL, error.code());
    assertEquals("plain", error.message());
    assertEquals("", error.reason());
    assertEquals(Optional.empty(), error.knownReason());
    assertEquals(Map.of(), error.metadata());
    assertEquals(Optional.empty(), error.retryDelay());
    assertEquals(List.of(), error.violations());
    assertEquals("", error.resource());
    assertEquals("INTERNAL: plain", error.getMessage());
  }

  private static Refusal plain() {
    return new Refusal(Status.INTERNAL.withDescription("plain"), new Metadata());
  }

  private static byte[] garbageWithin() {
    Any garbage =
        Any.pack(ErrorInfo.getDefaultInstance()).toBuilder()
            .setValue(ByteString.copyFrom(new byte[] {-1, -1, -1}))
            .build();
    return com.google.rpc.Status.newBuilder().addDetails(garbage).build().toByteArray();
  }

  private static InferwireException refused(Refusal refusal) {
    try (FakeServer server = new FakeServer().answers(FakeServer.refused(refusal));
        InferwireClient client = InferwireClient.connect(server.address())) {
      return assertThrows(InferwireException.class, client::listModels);
    }
  }
}
