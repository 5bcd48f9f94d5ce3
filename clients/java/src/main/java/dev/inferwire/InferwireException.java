package dev.inferwire;

import com.google.protobuf.Any;
import com.google.protobuf.Descriptors.EnumValueDescriptor;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.ResourceInfo;
import com.google.rpc.RetryInfo;
import dev.inferwire.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * A call failed. {@link #code} is for who retries, {@link #reason} for who branches, {@link #message} for people. It is
 * the only exception of this package for a call, and this class the only place that reads a gRPC status.
 *
 * @serial exclude
 */
@SuppressWarnings("serial") // Its cause is gRPC's own exception, which cannot be serialized either.
public final class InferwireException extends RuntimeException {
  /** The domain of this service's reasons; the reasons of any other are left out. */
  private static final String DOMAIN = "inferwire.dev";

  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  /**
   * A field of the request that the server refuses, and why.
   *
   * @param field the path of the field, such as "sampling.top_p"
   * @param description what is wrong with it
   */
  public record Violation(String field, String description) {}

  private final Status.Code code;
  private final String message;
  private final Details details;

  private InferwireException(Status.Code code, String message, Details details, Throwable cause) {
    super(describe(code, message, details), cause);
    this.code = code;
    this.message = message;
    this.details = details;
  }

  /**
   * Returns the failure of a call on any stub, such as one of grpc.health.v1. Details that are absent, foreign or
   * garbage leave only code and message.
   *
   * @param failure what the stub threw: a StatusRuntimeException or StatusException
   * @return the same as this package tells it; {@code failure} is its cause
   */
  public static InferwireException of(Throwable failure) {
    Status status = Status.fromThrowable(failure);
    Metadata trailers = Status.trailersFromThrowable(failure);
    byte[] details = trailers == null ? null : trailers.get(DETAILS);
    return new InferwireException(
        status.getCode(), sentence(status), details == null ? Details.NONE : Details.read(details), failure);
  }

  /** Returns the failure of a stream that ended with OK but without its last event. */
  static InferwireException streamTruncated() {
    return new InferwireException(
        Status.Code.ABORTED,
        "the stream ended without its last event; the answer may be cut short",
        new Details("STREAM_TRUNCATED", Map.of(), null, List.of(), ""),
        null);
  }

  /** Returns the failure of a request that the transport would refuse. */
  static InferwireException requestTooLarge(int bytes, int maxBytes) {
    return new InferwireException(
        Status.Code.RESOURCE_EXHAUSTED,
        "the request has " + bytes + " bytes; a message may have " + maxBytes,
        Details.NONE,
        null);
  }

  /**
   * Returns the code of the status.
   *
   * @return any but OK
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Returns why the call failed, for machines.
   *
   * @return the name of an {@link ErrorReason} without its prefix, such as "QUEUE_FULL", also one that this version
   *     does not know; empty when the failure is not the service's own: no server there, a proxy's answer, the transport
   */
  public String reason() {
    return details.reason;
  }

  /**
   * Returns the reason as the contract's enum.
   *
   * @return empty when there is no reason or this version does not know it
   */
  public Optional<ErrorReason> knownReason() {
    EnumValueDescriptor value = ErrorReason.getDescriptor().findValueByName("ERROR_REASON_" + reason());
    return value == null || value.getNumber() == 0
        ? Optional.empty()
        : Optional.of(ErrorReason.forNumber(value.getNumber()));
  }

  /**
   * Returns the server's own sentence. {@link #getMessage} is that sentence with the reason and the violations.
   *
   * @return empty when there is none
   */
  public String message() {
    return message;
  }

  /**
   * Returns what the reason documents, such as {@code {model=demo, queueCapacity=64}}.
   *
   * @return empty when there is nothing to say
   */
  public Map<String, String> metadata() {
    return details.metadata;
  }

  /**
   * Returns how long to wait before the server wants to be asked again.
   *
   * @return empty when it does not say
   */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(details.retryDelay);
  }

  /**
   * Returns the fields that the server refuses.
   *
   * @return empty when the request was not at fault
   */
  public List<Violation> violations() {
    return details.violations;
  }

  /**
   * Returns the name of the thing that was not found, such as a model's.
   *
   * @return empty when the server names none
   */
  public String resource() {
    return details.resource;
  }

  /** Returns the status in words. Only one that this side made has a cause, which then says the most. */
  private static String sentence(Status status) {
    String description = status.getDescription() == null ? "" : status.getDescription();
    String cause = status.getCause() == null ? null : status.getCause().getMessage();
    if (cause == null || description.contains(cause)) {
      return description;
    }
    return description.isEmpty() ? cause : description + ": " + cause;
  }

  private static String describe(Status.Code code, String message, Details details) {
    StringBuilder text = new StringBuilder(details.reason.isEmpty() ? code.name() : details.reason);
    text.append(": ").append(message);
    for (Violation violation : details.violations) {
      text.append("; ").append(violation.field).append(": ").append(violation.description);
    }
    return text.toString();
  }

  /** What the server says beside code and message. */
  private record Details(
      String reason,
      Map<String, String> metadata,
      Duration retryDelay,
      List<Violation> violations,
      String resource) {
    static final Details NONE = new Details("", Map.of(), null, List.of(), "");

    static Details read(byte[] bytes) {
      ErrorInfo info = ErrorInfo.getDefaultInstance();
      RetryInfo retry = RetryInfo.getDefaultInstance();
      BadRequest request = BadRequest.getDefaultInstance();
      ResourceInfo resource = ResourceInfo.getDefaultInstance();
      try {
        for (Any detail : com.google.rpc.Status.parseFrom(bytes).getDetailsList()) {
          if (detail.is(ErrorInfo.class)) {
            info = detail.unpack(ErrorInfo.class);
          } else if (detail.is(RetryInfo.class)) {
            retry = detail.unpack(RetryInfo.class);
          } else if (detail.is(BadRequest.class)) {
            request = detail.unpack(BadRequest.class);
          } else if (detail.is(ResourceInfo.class)) {
            resource = detail.unpack(ResourceInfo.class);
          }
        }
        boolean ours = info.getDomain().equals(DOMAIN);
        return new Details(
            ours ? info.getReason() : "",
            ours ? Map.copyOf(info.getMetadataMap()) : Map.of(),
            retry.hasRetryDelay()
                ? Duration.ofSeconds(retry.getRetryDelay().getSeconds(), retry.getRetryDelay().getNanos())
                : null,
            request.getFieldViolationsList().stream()
                .map(violation -> new Violation(violation.getField(), violation.getDescription()))
                .toList(),
            resource.getResourceName());
      } catch (InvalidProtocolBufferException | ArithmeticException garbage) {
        return NONE;
      }
    }
  }
}
