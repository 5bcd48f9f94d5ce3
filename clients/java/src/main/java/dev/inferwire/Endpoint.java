package dev.inferwire;

import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * Where a client calls and how: what is decided before any channel exists.
 *
 * @param certificateAuthority PEM of who signs the server's certificate; null: those that Java trusts
 * @param certificate PEM of the client's own certificate; null: it has none
 * @param key PEM of the key of that certificate
 * @param serverName the name that the server's certificate must have; null: that of the target
 */
record Endpoint(
    String target,
    boolean isTls,
    Path certificateAuthority,
    Path certificate,
    Path key,
    String serverName,
    boolean retries,
    boolean isRoundRobin) {
  static final int MAX_MESSAGE_BYTES = 32 * 1024 * 1024;

  private static final String INFERENCE_SERVICE = "inferwire.v1.InferenceService";
  private static final Pattern SCHEME = Pattern.compile("^(dns|ipv4|ipv6):");
  static final Pattern IP = Pattern.compile("[0-9]+(\\.[0-9]+){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*");

  static {
    AddressList.register();
  }

  /** Returns a channel, which connects at its first call. */
  ManagedChannel channel() {
    ManagedChannelBuilder<?> builder =
        Grpc.newChannelBuilder(target, isTls ? tls() : InsecureChannelCredentials.create())
            // A long prompt is silent for a while: the pings keep the connection known to what lies between, and find
            // it dead.
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .maxInboundMessageSize(MAX_MESSAGE_BYTES)
            .disableServiceConfigLookUp()
            .defaultServiceConfig(serviceConfig());
    if (retries) {
      // What gRPC cannot keep it cannot send again; its own bounds are below a large prompt.
      builder.enableRetry().perRpcBufferLimit(MAX_MESSAGE_BYTES).retryBufferSize(4L * MAX_MESSAGE_BYTES);
    } else {
      builder.disableRetry();
    }
    if (serverName != null) {
      builder.overrideAuthority(serverName);
    }
    return builder.build();
  }

  private ChannelCredentials tls() {
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    try {
      if (certificateAuthority != null) {
        try (InputStream authority = Files.newInputStream(certificateAuthority)) {
          tls.trustManager(authority);
        }
      }
      if (certificate != null) {
        try (InputStream chain = Files.newInputStream(certificate);
            InputStream secret = Files.newInputStream(key)) {
          tls.keyManager(chain, secret);
        }
      }
    } catch (IOException unreadable) {
      throw new UncheckedIOException("cannot read a certificate or key", unreadable);
    }
    return tls.build();
  }

  /** gRPC takes the numbers of a service config as doubles. */
  private Map<String, Object> serviceConfig() {
    Map<String, Object> config = new HashMap<>();
    if (retries) {
      // gRPC itself retries by this, only while nothing of the answer has come, and it obeys the server's
      // grpc-retry-pushback-ms. Loads are not in it: to repeat one is the caller's decision.
      config.put(
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", INFERENCE_SERVICE)),
                  "retryPolicy",
                  Map.of(
                      "maxAttempts", 3.0,
                      "initialBackoff", "0.2s",
                      "maxBackoff", "2s",
                      "backoffMultiplier", 2.0,
                      "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));
      config.put("retryThrottling", Map.of("maxTokens", 10.0, "tokenRatio", 0.1));
    }
    if (isRoundRobin) {
      config.put("loadBalancingConfig", List.of(Map.of("round_robin", Map.of())));
      // Readiness: a server that drains gets no more calls.
      config.put("healthCheckConfig", Map.of("serviceName", ""));
    }
    return config;
  }

  /** Returns whether a gRPC target is this machine by its very name: a Unix socket, localhost, a loopback address. */
  static boolean isLocal(String target) {
    if (target.startsWith("unix:") || target.startsWith("unix-abstract:")) {
      return true;
    }
    // Also with a scheme, such as dns:///localhost:50051 and ipv4:127.0.0.1:50051,127.0.0.1:50052.
    String addresses = SCHEME.matcher(target.substring(target.lastIndexOf('/') + 1)).replaceFirst("");
    return Stream.of(addresses.split(",")).allMatch(Endpoint::isLoopback);
  }

  private static boolean isLoopback(String address) {
    String host = address;
    int colon = address.indexOf(':');
    if (address.startsWith("[")) {
      host = address.substring(1).split("]", 2)[0];
    } else if (colon >= 0 && colon == address.lastIndexOf(':')) {
      host = address.substring(0, colon);
    }
    if (host.equals("localhost")) {
      return true;
    }
    try {
      // Only an address is asked for; a name would be looked up.
      return IP.matcher(host).matches() && InetAddress.getByName(host).isLoopbackAddress();
    } catch (UnknownHostException notAnAddress) {
      return false;
    }
  }

  @Override
  public String toString() {
    return target + " | " + (isTls ? "TLS" : "plain text");
  }
}
