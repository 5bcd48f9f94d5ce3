package dev.inferwire.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
 * state; those that do are in ModelService.
 * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
 * without its prefix), never a message. Any RPC may also end with:
 *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
 *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
 *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
 *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
 *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
 *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class InferenceServiceGrpc {

  private InferenceServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "inferwire.v1.InferenceService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.CompleteResponse> getCompleteMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Complete",
      requestType = dev.inferwire.v1.CompleteRequest.class,
      responseType = dev.inferwire.v1.CompleteResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.CompleteResponse> getCompleteMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.CompleteResponse> getCompleteMethod;
    if ((getCompleteMethod = InferenceServiceGrpc.getCompleteMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getCompleteMethod = InferenceServiceGrpc.getCompleteMethod) == null) {
          InferenceServiceGrpc.getCompleteMethod = getCompleteMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.CompleteResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Complete"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.CompleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.CompleteResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("Complete"))
              .build();
        }
      }
    }
    return getCompleteMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.StreamCompleteResponse> getStreamCompleteMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "StreamComplete",
      requestType = dev.inferwire.v1.CompleteRequest.class,
      responseType = dev.inferwire.v1.StreamCompleteResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.StreamCompleteResponse> getStreamCompleteMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.StreamCompleteResponse> getStreamCompleteMethod;
    if ((getStreamCompleteMethod = InferenceServiceGrpc.getStreamCompleteMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getStreamCompleteMethod = InferenceServiceGrpc.getStreamCompleteMethod) == null) {
          InferenceServiceGrpc.getStreamCompleteMethod = getStreamCompleteMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.StreamCompleteResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "StreamComplete"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.CompleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.StreamCompleteResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("StreamComplete"))
              .build();
        }
      }
    }
    return getStreamCompleteMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.EmbedRequest,
      dev.inferwire.v1.EmbedResponse> getEmbedMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Embed",
      requestType = dev.inferwire.v1.EmbedRequest.class,
      responseType = dev.inferwire.v1.EmbedResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.EmbedRequest,
      dev.inferwire.v1.EmbedResponse> getEmbedMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.EmbedRequest, dev.inferwire.v1.EmbedResponse> getEmbedMethod;
    if ((getEmbedMethod = InferenceServiceGrpc.getEmbedMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getEmbedMethod = InferenceServiceGrpc.getEmbedMethod) == null) {
          InferenceServiceGrpc.getEmbedMethod = getEmbedMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.EmbedRequest, dev.inferwire.v1.EmbedResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Embed"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.EmbedRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.EmbedResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("Embed"))
              .build();
        }
      }
    }
    return getEmbedMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.CountTokensResponse> getCountTokensMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CountTokens",
      requestType = dev.inferwire.v1.CompleteRequest.class,
      responseType = dev.inferwire.v1.CountTokensResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest,
      dev.inferwire.v1.CountTokensResponse> getCountTokensMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.CountTokensResponse> getCountTokensMethod;
    if ((getCountTokensMethod = InferenceServiceGrpc.getCountTokensMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getCountTokensMethod = InferenceServiceGrpc.getCountTokensMethod) == null) {
          InferenceServiceGrpc.getCountTokensMethod = getCountTokensMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.CompleteRequest, dev.inferwire.v1.CountTokensResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CountTokens"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.CompleteRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.CountTokensResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("CountTokens"))
              .build();
        }
      }
    }
    return getCountTokensMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.TokenizeRequest,
      dev.inferwire.v1.TokenizeResponse> getTokenizeMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Tokenize",
      requestType = dev.inferwire.v1.TokenizeRequest.class,
      responseType = dev.inferwire.v1.TokenizeResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.TokenizeRequest,
      dev.inferwire.v1.TokenizeResponse> getTokenizeMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.TokenizeRequest, dev.inferwire.v1.TokenizeResponse> getTokenizeMethod;
    if ((getTokenizeMethod = InferenceServiceGrpc.getTokenizeMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getTokenizeMethod = InferenceServiceGrpc.getTokenizeMethod) == null) {
          InferenceServiceGrpc.getTokenizeMethod = getTokenizeMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.TokenizeRequest, dev.inferwire.v1.TokenizeResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Tokenize"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.TokenizeRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.TokenizeResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("Tokenize"))
              .build();
        }
      }
    }
    return getTokenizeMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.DetokenizeRequest,
      dev.inferwire.v1.DetokenizeResponse> getDetokenizeMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Detokenize",
      requestType = dev.inferwire.v1.DetokenizeRequest.class,
      responseType = dev.inferwire.v1.DetokenizeResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.DetokenizeRequest,
      dev.inferwire.v1.DetokenizeResponse> getDetokenizeMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.DetokenizeRequest, dev.inferwire.v1.DetokenizeResponse> getDetokenizeMethod;
    if ((getDetokenizeMethod = InferenceServiceGrpc.getDetokenizeMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getDetokenizeMethod = InferenceServiceGrpc.getDetokenizeMethod) == null) {
          InferenceServiceGrpc.getDetokenizeMethod = getDetokenizeMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.DetokenizeRequest, dev.inferwire.v1.DetokenizeResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Detokenize"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.DetokenizeRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.DetokenizeResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("Detokenize"))
              .build();
        }
      }
    }
    return getDetokenizeMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.ListModelsRequest,
      dev.inferwire.v1.ListModelsResponse> getListModelsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListModels",
      requestType = dev.inferwire.v1.ListModelsRequest.class,
      responseType = dev.inferwire.v1.ListModelsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.ListModelsRequest,
      dev.inferwire.v1.ListModelsResponse> getListModelsMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.ListModelsRequest, dev.inferwire.v1.ListModelsResponse> getListModelsMethod;
    if ((getListModelsMethod = InferenceServiceGrpc.getListModelsMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getListModelsMethod = InferenceServiceGrpc.getListModelsMethod) == null) {
          InferenceServiceGrpc.getListModelsMethod = getListModelsMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.ListModelsRequest, dev.inferwire.v1.ListModelsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListModels"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.ListModelsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.ListModelsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("ListModels"))
              .build();
        }
      }
    }
    return getListModelsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.GetModelRequest,
      dev.inferwire.v1.GetModelResponse> getGetModelMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetModel",
      requestType = dev.inferwire.v1.GetModelRequest.class,
      responseType = dev.inferwire.v1.GetModelResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.GetModelRequest,
      dev.inferwire.v1.GetModelResponse> getGetModelMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.GetModelRequest, dev.inferwire.v1.GetModelResponse> getGetModelMethod;
    if ((getGetModelMethod = InferenceServiceGrpc.getGetModelMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getGetModelMethod = InferenceServiceGrpc.getGetModelMethod) == null) {
          InferenceServiceGrpc.getGetModelMethod = getGetModelMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.GetModelRequest, dev.inferwire.v1.GetModelResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetModel"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.GetModelRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.GetModelResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("GetModel"))
              .build();
        }
      }
    }
    return getGetModelMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.WatchModelsRequest,
      dev.inferwire.v1.WatchModelsResponse> getWatchModelsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "WatchModels",
      requestType = dev.inferwire.v1.WatchModelsRequest.class,
      responseType = dev.inferwire.v1.WatchModelsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.WatchModelsRequest,
      dev.inferwire.v1.WatchModelsResponse> getWatchModelsMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.WatchModelsRequest, dev.inferwire.v1.WatchModelsResponse> getWatchModelsMethod;
    if ((getWatchModelsMethod = InferenceServiceGrpc.getWatchModelsMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getWatchModelsMethod = InferenceServiceGrpc.getWatchModelsMethod) == null) {
          InferenceServiceGrpc.getWatchModelsMethod = getWatchModelsMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.WatchModelsRequest, dev.inferwire.v1.WatchModelsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "WatchModels"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.WatchModelsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.WatchModelsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("WatchModels"))
              .build();
        }
      }
    }
    return getWatchModelsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.ListBackendsRequest,
      dev.inferwire.v1.ListBackendsResponse> getListBackendsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListBackends",
      requestType = dev.inferwire.v1.ListBackendsRequest.class,
      responseType = dev.inferwire.v1.ListBackendsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.ListBackendsRequest,
      dev.inferwire.v1.ListBackendsResponse> getListBackendsMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.ListBackendsRequest, dev.inferwire.v1.ListBackendsResponse> getListBackendsMethod;
    if ((getListBackendsMethod = InferenceServiceGrpc.getListBackendsMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getListBackendsMethod = InferenceServiceGrpc.getListBackendsMethod) == null) {
          InferenceServiceGrpc.getListBackendsMethod = getListBackendsMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.ListBackendsRequest, dev.inferwire.v1.ListBackendsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListBackends"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.ListBackendsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.ListBackendsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("ListBackends"))
              .build();
        }
      }
    }
    return getListBackendsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.HealthRequest,
      dev.inferwire.v1.HealthResponse> getHealthMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Health",
      requestType = dev.inferwire.v1.HealthRequest.class,
      responseType = dev.inferwire.v1.HealthResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.HealthRequest,
      dev.inferwire.v1.HealthResponse> getHealthMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.HealthRequest, dev.inferwire.v1.HealthResponse> getHealthMethod;
    if ((getHealthMethod = InferenceServiceGrpc.getHealthMethod) == null) {
      synchronized (InferenceServiceGrpc.class) {
        if ((getHealthMethod = InferenceServiceGrpc.getHealthMethod) == null) {
          InferenceServiceGrpc.getHealthMethod = getHealthMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.HealthRequest, dev.inferwire.v1.HealthResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Health"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.HealthRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.HealthResponse.getDefaultInstance()))
              .setSchemaDescriptor(new InferenceServiceMethodDescriptorSupplier("Health"))
              .build();
        }
      }
    }
    return getHealthMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static InferenceServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<InferenceServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<InferenceServiceStub>() {
        @java.lang.Override
        public InferenceServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new InferenceServiceStub(channel, callOptions);
        }
      };
    return InferenceServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static InferenceServiceBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<InferenceServiceBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<InferenceServiceBlockingV2Stub>() {
        @java.lang.Override
        public InferenceServiceBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new InferenceServiceBlockingV2Stub(channel, callOptions);
        }
      };
    return InferenceServiceBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static InferenceServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<InferenceServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<InferenceServiceBlockingStub>() {
        @java.lang.Override
        public InferenceServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new InferenceServiceBlockingStub(channel, callOptions);
        }
      };
    return InferenceServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static InferenceServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<InferenceServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<InferenceServiceFutureStub>() {
        @java.lang.Override
        public InferenceServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new InferenceServiceFutureStub(channel, callOptions);
        }
      };
    return InferenceServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Completes a prompt or a chat and returns the whole answer. It is StreamComplete read to its end: the same
     * request gives the same answer, usage and errors.
     * Errors: those of StreamComplete; a unary call always counts as "before the first delta".
     * </pre>
     */
    default void complete(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.CompleteResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCompleteMethod(), responseObserver);
    }

    /**
     * <pre>
     * Completes a prompt or a chat as a stream of events. The law of the stream:
     * 1. `started` comes first and once, together with the first delta, or with the completion of an empty answer.
     *    A failure before that is a status without any message, so a retry policy may act. Who asks for progress
     *    events gets `started` as soon as the request has its place in the queue, then progress until the first delta,
     *    and gives up automatic retry.
     * 2. Deltas come in order; their concatenation equals the unary answer. No delta is empty; where one ends and the
     *    next begins carries no meaning. Strings are valid UTF-8: a character split over tokens is held back, bytes
     *    that can never become one turn into U+FFFD.
     * 3. Exactly one `completion` comes last, also when the reason is LENGTH, TIME_LIMIT or CONTENT_FILTER; then the
     *    status is OK.
     * 4. On failure the status is not OK and there is no `completion`. A client treats OK without a completion as
     *    STREAM_TRUNCATED, and skips an event it does not know.
     * Cancelling the call, or its deadline, ends the generation at the next engine step and frees what it held.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST, PROMPT_TOO_LARGE, REQUEST_TOO_LARGE, CONTEXT_LENGTH_EXCEEDED,
     *     TEMPLATE_REJECTED, GRAMMAR_INVALID, GRAMMAR_TOO_COMPLEX: mend the request; field violations say where.
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     *   FAILED_PRECONDITION MODEL_NOT_LOADED, MODEL_FAILED: load the model, or look at GetModel.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the model cannot honour a field; see Model.capabilities.
     *   UNAVAILABLE MODEL_LOADING, MODEL_UNLOADING, ENGINE_CRASHED, ENGINE_STALLED: retry after RetryInfo's delay.
     *   RESOURCE_EXHAUSTED QUEUE_FULL, RATE_LIMITED, DEADLINE_UNREACHABLE: retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_UNAVAILABLE, UPSTREAM_STALLED, UPSTREAM_TRUNCATED, RESOURCE_EXHAUSTED UPSTREAM_RATE_LIMITED: a
     *     remote backend; retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_PROTOCOL_ERROR, INTERNAL UPSTREAM_REDIRECT, FAILED_PRECONDITION UPSTREAM_AUTH, NOT_FOUND
     *     UPSTREAM_MODEL_NOT_FOUND: a remote backend; the operator must look.
     *   INVALID_ARGUMENT UPSTREAM_REJECTED: a remote backend refuses the request; upstreamCode may say why.
     *   ABORTED with any of the above or MODEL_UNLOADED, DRAIN_TIMEOUT, CLIENT_TOO_SLOW: deltas were already sent;
     *     start again at a higher level. ErrorInfo's tokensEmitted says how many tokens were sent.
     *   DEADLINE_EXCEEDED DEADLINE_EXCEEDED: the call's own deadline passed.
     *   INTERNAL REQUEST_QUARANTINED: this very request crashed the engine before; do not retry it.
     * </pre>
     */
    default void streamComplete(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamCompleteResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getStreamCompleteMethod(), responseObserver);
    }

    /**
     * <pre>
     * Turns texts into vectors.
     * Errors: those of Complete; FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND when the model gives no embeddings.
     * </pre>
     */
    default void embed(dev.inferwire.v1.EmbedRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.EmbedResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getEmbedMethod(), responseObserver);
    }

    /**
     * <pre>
     * Counts the tokens that a completion request would put before the model: its template and tools included.
     * Nothing is generated and no sequence slot is taken.
     * Errors: those of Complete that concern the input; UNSUPPORTED_BY_BACKEND when the backend cannot count.
     * </pre>
     */
    default void countTokens(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.CountTokensResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCountTokensMethod(), responseObserver);
    }

    /**
     * <pre>
     * Splits a text into the model's tokens.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND, FAILED_PRECONDITION MODEL_NOT_LOADED, UNAVAILABLE MODEL_LOADING: as in Complete.
     *   INVALID_ARGUMENT PROMPT_TOO_LARGE: send a shorter text.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the backend does not show its tokens.
     * </pre>
     */
    default void tokenize(dev.inferwire.v1.TokenizeRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.TokenizeResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getTokenizeMethod(), responseObserver);
    }

    /**
     * <pre>
     * Joins tokens to the bytes they stand for.
     * Errors: those of Tokenize; INVALID_ARGUMENT INVALID_REQUEST for an id outside the vocabulary.
     * </pre>
     */
    default void detokenize(dev.inferwire.v1.DetokenizeRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.DetokenizeResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getDetokenizeMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists every model the caller may see, in any state, ordered by name.
     * Errors: only those of every RPC.
     * </pre>
     */
    default void listModels(dev.inferwire.v1.ListModelsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.ListModelsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListModelsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Describes one model.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     * </pre>
     */
    default void getModel(dev.inferwire.v1.GetModelRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.GetModelResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetModelMethod(), responseObserver);
    }

    /**
     * <pre>
     * Sends the whole list of models at once and again after every change, each with its revision. A slow reader
     * misses intermediate revisions, never the last one. The stream has no end of its own and no default deadline.
     * Errors: only those of every RPC; when the server drains it ends with UNAVAILABLE DRAINING.
     * </pre>
     */
    default void watchModels(dev.inferwire.v1.WatchModelsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.WatchModelsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getWatchModelsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists the backends with their capabilities, models and health.
     * Errors: only those of every RPC.
     * </pre>
     */
    default void listBackends(dev.inferwire.v1.ListBackendsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.ListBackendsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListBackendsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Says what the server is and how it is. For probes use grpc.health.v1.Health with the names "liveness",
     * "" or "inferwire.v1.InferenceService" (readiness) and "model/&lt;name&gt;".
     * Errors: only those of every RPC.
     * </pre>
     */
    default void health(dev.inferwire.v1.HealthRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.HealthResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getHealthMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service InferenceService.
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public static abstract class InferenceServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return InferenceServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service InferenceService.
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public static final class InferenceServiceStub
      extends io.grpc.stub.AbstractAsyncStub<InferenceServiceStub> {
    private InferenceServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected InferenceServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new InferenceServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Completes a prompt or a chat and returns the whole answer. It is StreamComplete read to its end: the same
     * request gives the same answer, usage and errors.
     * Errors: those of StreamComplete; a unary call always counts as "before the first delta".
     * </pre>
     */
    public void complete(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.CompleteResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCompleteMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Completes a prompt or a chat as a stream of events. The law of the stream:
     * 1. `started` comes first and once, together with the first delta, or with the completion of an empty answer.
     *    A failure before that is a status without any message, so a retry policy may act. Who asks for progress
     *    events gets `started` as soon as the request has its place in the queue, then progress until the first delta,
     *    and gives up automatic retry.
     * 2. Deltas come in order; their concatenation equals the unary answer. No delta is empty; where one ends and the
     *    next begins carries no meaning. Strings are valid UTF-8: a character split over tokens is held back, bytes
     *    that can never become one turn into U+FFFD.
     * 3. Exactly one `completion` comes last, also when the reason is LENGTH, TIME_LIMIT or CONTENT_FILTER; then the
     *    status is OK.
     * 4. On failure the status is not OK and there is no `completion`. A client treats OK without a completion as
     *    STREAM_TRUNCATED, and skips an event it does not know.
     * Cancelling the call, or its deadline, ends the generation at the next engine step and frees what it held.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST, PROMPT_TOO_LARGE, REQUEST_TOO_LARGE, CONTEXT_LENGTH_EXCEEDED,
     *     TEMPLATE_REJECTED, GRAMMAR_INVALID, GRAMMAR_TOO_COMPLEX: mend the request; field violations say where.
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     *   FAILED_PRECONDITION MODEL_NOT_LOADED, MODEL_FAILED: load the model, or look at GetModel.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the model cannot honour a field; see Model.capabilities.
     *   UNAVAILABLE MODEL_LOADING, MODEL_UNLOADING, ENGINE_CRASHED, ENGINE_STALLED: retry after RetryInfo's delay.
     *   RESOURCE_EXHAUSTED QUEUE_FULL, RATE_LIMITED, DEADLINE_UNREACHABLE: retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_UNAVAILABLE, UPSTREAM_STALLED, UPSTREAM_TRUNCATED, RESOURCE_EXHAUSTED UPSTREAM_RATE_LIMITED: a
     *     remote backend; retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_PROTOCOL_ERROR, INTERNAL UPSTREAM_REDIRECT, FAILED_PRECONDITION UPSTREAM_AUTH, NOT_FOUND
     *     UPSTREAM_MODEL_NOT_FOUND: a remote backend; the operator must look.
     *   INVALID_ARGUMENT UPSTREAM_REJECTED: a remote backend refuses the request; upstreamCode may say why.
     *   ABORTED with any of the above or MODEL_UNLOADED, DRAIN_TIMEOUT, CLIENT_TOO_SLOW: deltas were already sent;
     *     start again at a higher level. ErrorInfo's tokensEmitted says how many tokens were sent.
     *   DEADLINE_EXCEEDED DEADLINE_EXCEEDED: the call's own deadline passed.
     *   INTERNAL REQUEST_QUARANTINED: this very request crashed the engine before; do not retry it.
     * </pre>
     */
    public void streamComplete(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamCompleteResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getStreamCompleteMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Turns texts into vectors.
     * Errors: those of Complete; FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND when the model gives no embeddings.
     * </pre>
     */
    public void embed(dev.inferwire.v1.EmbedRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.EmbedResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getEmbedMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Counts the tokens that a completion request would put before the model: its template and tools included.
     * Nothing is generated and no sequence slot is taken.
     * Errors: those of Complete that concern the input; UNSUPPORTED_BY_BACKEND when the backend cannot count.
     * </pre>
     */
    public void countTokens(dev.inferwire.v1.CompleteRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.CountTokensResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCountTokensMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Splits a text into the model's tokens.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND, FAILED_PRECONDITION MODEL_NOT_LOADED, UNAVAILABLE MODEL_LOADING: as in Complete.
     *   INVALID_ARGUMENT PROMPT_TOO_LARGE: send a shorter text.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the backend does not show its tokens.
     * </pre>
     */
    public void tokenize(dev.inferwire.v1.TokenizeRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.TokenizeResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getTokenizeMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Joins tokens to the bytes they stand for.
     * Errors: those of Tokenize; INVALID_ARGUMENT INVALID_REQUEST for an id outside the vocabulary.
     * </pre>
     */
    public void detokenize(dev.inferwire.v1.DetokenizeRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.DetokenizeResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getDetokenizeMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists every model the caller may see, in any state, ordered by name.
     * Errors: only those of every RPC.
     * </pre>
     */
    public void listModels(dev.inferwire.v1.ListModelsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.ListModelsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListModelsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Describes one model.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     * </pre>
     */
    public void getModel(dev.inferwire.v1.GetModelRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.GetModelResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetModelMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Sends the whole list of models at once and again after every change, each with its revision. A slow reader
     * misses intermediate revisions, never the last one. The stream has no end of its own and no default deadline.
     * Errors: only those of every RPC; when the server drains it ends with UNAVAILABLE DRAINING.
     * </pre>
     */
    public void watchModels(dev.inferwire.v1.WatchModelsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.WatchModelsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getWatchModelsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists the backends with their capabilities, models and health.
     * Errors: only those of every RPC.
     * </pre>
     */
    public void listBackends(dev.inferwire.v1.ListBackendsRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.ListBackendsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListBackendsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Says what the server is and how it is. For probes use grpc.health.v1.Health with the names "liveness",
     * "" or "inferwire.v1.InferenceService" (readiness) and "model/&lt;name&gt;".
     * Errors: only those of every RPC.
     * </pre>
     */
    public void health(dev.inferwire.v1.HealthRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.HealthResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getHealthMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service InferenceService.
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public static final class InferenceServiceBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<InferenceServiceBlockingV2Stub> {
    private InferenceServiceBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected InferenceServiceBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new InferenceServiceBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Completes a prompt or a chat and returns the whole answer. It is StreamComplete read to its end: the same
     * request gives the same answer, usage and errors.
     * Errors: those of StreamComplete; a unary call always counts as "before the first delta".
     * </pre>
     */
    public dev.inferwire.v1.CompleteResponse complete(dev.inferwire.v1.CompleteRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Completes a prompt or a chat as a stream of events. The law of the stream:
     * 1. `started` comes first and once, together with the first delta, or with the completion of an empty answer.
     *    A failure before that is a status without any message, so a retry policy may act. Who asks for progress
     *    events gets `started` as soon as the request has its place in the queue, then progress until the first delta,
     *    and gives up automatic retry.
     * 2. Deltas come in order; their concatenation equals the unary answer. No delta is empty; where one ends and the
     *    next begins carries no meaning. Strings are valid UTF-8: a character split over tokens is held back, bytes
     *    that can never become one turn into U+FFFD.
     * 3. Exactly one `completion` comes last, also when the reason is LENGTH, TIME_LIMIT or CONTENT_FILTER; then the
     *    status is OK.
     * 4. On failure the status is not OK and there is no `completion`. A client treats OK without a completion as
     *    STREAM_TRUNCATED, and skips an event it does not know.
     * Cancelling the call, or its deadline, ends the generation at the next engine step and frees what it held.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST, PROMPT_TOO_LARGE, REQUEST_TOO_LARGE, CONTEXT_LENGTH_EXCEEDED,
     *     TEMPLATE_REJECTED, GRAMMAR_INVALID, GRAMMAR_TOO_COMPLEX: mend the request; field violations say where.
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     *   FAILED_PRECONDITION MODEL_NOT_LOADED, MODEL_FAILED: load the model, or look at GetModel.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the model cannot honour a field; see Model.capabilities.
     *   UNAVAILABLE MODEL_LOADING, MODEL_UNLOADING, ENGINE_CRASHED, ENGINE_STALLED: retry after RetryInfo's delay.
     *   RESOURCE_EXHAUSTED QUEUE_FULL, RATE_LIMITED, DEADLINE_UNREACHABLE: retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_UNAVAILABLE, UPSTREAM_STALLED, UPSTREAM_TRUNCATED, RESOURCE_EXHAUSTED UPSTREAM_RATE_LIMITED: a
     *     remote backend; retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_PROTOCOL_ERROR, INTERNAL UPSTREAM_REDIRECT, FAILED_PRECONDITION UPSTREAM_AUTH, NOT_FOUND
     *     UPSTREAM_MODEL_NOT_FOUND: a remote backend; the operator must look.
     *   INVALID_ARGUMENT UPSTREAM_REJECTED: a remote backend refuses the request; upstreamCode may say why.
     *   ABORTED with any of the above or MODEL_UNLOADED, DRAIN_TIMEOUT, CLIENT_TOO_SLOW: deltas were already sent;
     *     start again at a higher level. ErrorInfo's tokensEmitted says how many tokens were sent.
     *   DEADLINE_EXCEEDED DEADLINE_EXCEEDED: the call's own deadline passed.
     *   INTERNAL REQUEST_QUARANTINED: this very request crashed the engine before; do not retry it.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.inferwire.v1.StreamCompleteResponse>
        streamComplete(dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getStreamCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Turns texts into vectors.
     * Errors: those of Complete; FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND when the model gives no embeddings.
     * </pre>
     */
    public dev.inferwire.v1.EmbedResponse embed(dev.inferwire.v1.EmbedRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getEmbedMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Counts the tokens that a completion request would put before the model: its template and tools included.
     * Nothing is generated and no sequence slot is taken.
     * Errors: those of Complete that concern the input; UNSUPPORTED_BY_BACKEND when the backend cannot count.
     * </pre>
     */
    public dev.inferwire.v1.CountTokensResponse countTokens(dev.inferwire.v1.CompleteRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCountTokensMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Splits a text into the model's tokens.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND, FAILED_PRECONDITION MODEL_NOT_LOADED, UNAVAILABLE MODEL_LOADING: as in Complete.
     *   INVALID_ARGUMENT PROMPT_TOO_LARGE: send a shorter text.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the backend does not show its tokens.
     * </pre>
     */
    public dev.inferwire.v1.TokenizeResponse tokenize(dev.inferwire.v1.TokenizeRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getTokenizeMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Joins tokens to the bytes they stand for.
     * Errors: those of Tokenize; INVALID_ARGUMENT INVALID_REQUEST for an id outside the vocabulary.
     * </pre>
     */
    public dev.inferwire.v1.DetokenizeResponse detokenize(dev.inferwire.v1.DetokenizeRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getDetokenizeMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists every model the caller may see, in any state, ordered by name.
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.ListModelsResponse listModels(dev.inferwire.v1.ListModelsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Describes one model.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     * </pre>
     */
    public dev.inferwire.v1.GetModelResponse getModel(dev.inferwire.v1.GetModelRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetModelMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Sends the whole list of models at once and again after every change, each with its revision. A slow reader
     * misses intermediate revisions, never the last one. The stream has no end of its own and no default deadline.
     * Errors: only those of every RPC; when the server drains it ends with UNAVAILABLE DRAINING.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.inferwire.v1.WatchModelsResponse>
        watchModels(dev.inferwire.v1.WatchModelsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getWatchModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists the backends with their capabilities, models and health.
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.ListBackendsResponse listBackends(dev.inferwire.v1.ListBackendsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListBackendsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Says what the server is and how it is. For probes use grpc.health.v1.Health with the names "liveness",
     * "" or "inferwire.v1.InferenceService" (readiness) and "model/&lt;name&gt;".
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.HealthResponse health(dev.inferwire.v1.HealthRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getHealthMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service InferenceService.
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public static final class InferenceServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<InferenceServiceBlockingStub> {
    private InferenceServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected InferenceServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new InferenceServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Completes a prompt or a chat and returns the whole answer. It is StreamComplete read to its end: the same
     * request gives the same answer, usage and errors.
     * Errors: those of StreamComplete; a unary call always counts as "before the first delta".
     * </pre>
     */
    public dev.inferwire.v1.CompleteResponse complete(dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Completes a prompt or a chat as a stream of events. The law of the stream:
     * 1. `started` comes first and once, together with the first delta, or with the completion of an empty answer.
     *    A failure before that is a status without any message, so a retry policy may act. Who asks for progress
     *    events gets `started` as soon as the request has its place in the queue, then progress until the first delta,
     *    and gives up automatic retry.
     * 2. Deltas come in order; their concatenation equals the unary answer. No delta is empty; where one ends and the
     *    next begins carries no meaning. Strings are valid UTF-8: a character split over tokens is held back, bytes
     *    that can never become one turn into U+FFFD.
     * 3. Exactly one `completion` comes last, also when the reason is LENGTH, TIME_LIMIT or CONTENT_FILTER; then the
     *    status is OK.
     * 4. On failure the status is not OK and there is no `completion`. A client treats OK without a completion as
     *    STREAM_TRUNCATED, and skips an event it does not know.
     * Cancelling the call, or its deadline, ends the generation at the next engine step and frees what it held.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST, PROMPT_TOO_LARGE, REQUEST_TOO_LARGE, CONTEXT_LENGTH_EXCEEDED,
     *     TEMPLATE_REJECTED, GRAMMAR_INVALID, GRAMMAR_TOO_COMPLEX: mend the request; field violations say where.
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     *   FAILED_PRECONDITION MODEL_NOT_LOADED, MODEL_FAILED: load the model, or look at GetModel.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the model cannot honour a field; see Model.capabilities.
     *   UNAVAILABLE MODEL_LOADING, MODEL_UNLOADING, ENGINE_CRASHED, ENGINE_STALLED: retry after RetryInfo's delay.
     *   RESOURCE_EXHAUSTED QUEUE_FULL, RATE_LIMITED, DEADLINE_UNREACHABLE: retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_UNAVAILABLE, UPSTREAM_STALLED, UPSTREAM_TRUNCATED, RESOURCE_EXHAUSTED UPSTREAM_RATE_LIMITED: a
     *     remote backend; retry after RetryInfo's delay.
     *   UNAVAILABLE UPSTREAM_PROTOCOL_ERROR, INTERNAL UPSTREAM_REDIRECT, FAILED_PRECONDITION UPSTREAM_AUTH, NOT_FOUND
     *     UPSTREAM_MODEL_NOT_FOUND: a remote backend; the operator must look.
     *   INVALID_ARGUMENT UPSTREAM_REJECTED: a remote backend refuses the request; upstreamCode may say why.
     *   ABORTED with any of the above or MODEL_UNLOADED, DRAIN_TIMEOUT, CLIENT_TOO_SLOW: deltas were already sent;
     *     start again at a higher level. ErrorInfo's tokensEmitted says how many tokens were sent.
     *   DEADLINE_EXCEEDED DEADLINE_EXCEEDED: the call's own deadline passed.
     *   INTERNAL REQUEST_QUARANTINED: this very request crashed the engine before; do not retry it.
     * </pre>
     */
    public java.util.Iterator<dev.inferwire.v1.StreamCompleteResponse> streamComplete(
        dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getStreamCompleteMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Turns texts into vectors.
     * Errors: those of Complete; FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND when the model gives no embeddings.
     * </pre>
     */
    public dev.inferwire.v1.EmbedResponse embed(dev.inferwire.v1.EmbedRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getEmbedMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Counts the tokens that a completion request would put before the model: its template and tools included.
     * Nothing is generated and no sequence slot is taken.
     * Errors: those of Complete that concern the input; UNSUPPORTED_BY_BACKEND when the backend cannot count.
     * </pre>
     */
    public dev.inferwire.v1.CountTokensResponse countTokens(dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCountTokensMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Splits a text into the model's tokens.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND, FAILED_PRECONDITION MODEL_NOT_LOADED, UNAVAILABLE MODEL_LOADING: as in Complete.
     *   INVALID_ARGUMENT PROMPT_TOO_LARGE: send a shorter text.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the backend does not show its tokens.
     * </pre>
     */
    public dev.inferwire.v1.TokenizeResponse tokenize(dev.inferwire.v1.TokenizeRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getTokenizeMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Joins tokens to the bytes they stand for.
     * Errors: those of Tokenize; INVALID_ARGUMENT INVALID_REQUEST for an id outside the vocabulary.
     * </pre>
     */
    public dev.inferwire.v1.DetokenizeResponse detokenize(dev.inferwire.v1.DetokenizeRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getDetokenizeMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists every model the caller may see, in any state, ordered by name.
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.ListModelsResponse listModels(dev.inferwire.v1.ListModelsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Describes one model.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     * </pre>
     */
    public dev.inferwire.v1.GetModelResponse getModel(dev.inferwire.v1.GetModelRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetModelMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Sends the whole list of models at once and again after every change, each with its revision. A slow reader
     * misses intermediate revisions, never the last one. The stream has no end of its own and no default deadline.
     * Errors: only those of every RPC; when the server drains it ends with UNAVAILABLE DRAINING.
     * </pre>
     */
    public java.util.Iterator<dev.inferwire.v1.WatchModelsResponse> watchModels(
        dev.inferwire.v1.WatchModelsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getWatchModelsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists the backends with their capabilities, models and health.
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.ListBackendsResponse listBackends(dev.inferwire.v1.ListBackendsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListBackendsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Says what the server is and how it is. For probes use grpc.health.v1.Health with the names "liveness",
     * "" or "inferwire.v1.InferenceService" (readiness) and "model/&lt;name&gt;".
     * Errors: only those of every RPC.
     * </pre>
     */
    public dev.inferwire.v1.HealthResponse health(dev.inferwire.v1.HealthRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getHealthMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service InferenceService.
   * <pre>
   * Completes prompts and chats, and answers questions about models. No RPC of this service changes the server's
   * state; those that do are in ModelService.
   * Failure is a gRPC status with google.rpc.ErrorInfo (domain "inferwire.dev", reason = the name of an ErrorReason
   * without its prefix), never a message. Any RPC may also end with:
   *   UNAUTHENTICATED TOKEN_MISSING, TOKEN_INVALID: send a valid key.
   *   PERMISSION_DENIED SCOPE_REQUIRED: ask the operator for the scope.
   *   UNAVAILABLE DRAINING: the server is going away; retry, another replica will answer.
   *   INVALID_ARGUMENT MALFORMED_MESSAGE: the bytes are not the request's message.
   *   INTERNAL INTERNAL: a defect of the server; its errorId finds the log line.
   *   RESOURCE_EXHAUSTED without details: a message over 32 MiB, refused by the transport.
   * </pre>
   */
  public static final class InferenceServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<InferenceServiceFutureStub> {
    private InferenceServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected InferenceServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new InferenceServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Completes a prompt or a chat and returns the whole answer. It is StreamComplete read to its end: the same
     * request gives the same answer, usage and errors.
     * Errors: those of StreamComplete; a unary call always counts as "before the first delta".
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.CompleteResponse> complete(
        dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCompleteMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Turns texts into vectors.
     * Errors: those of Complete; FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND when the model gives no embeddings.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.EmbedResponse> embed(
        dev.inferwire.v1.EmbedRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getEmbedMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Counts the tokens that a completion request would put before the model: its template and tools included.
     * Nothing is generated and no sequence slot is taken.
     * Errors: those of Complete that concern the input; UNSUPPORTED_BY_BACKEND when the backend cannot count.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.CountTokensResponse> countTokens(
        dev.inferwire.v1.CompleteRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCountTokensMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Splits a text into the model's tokens.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND, FAILED_PRECONDITION MODEL_NOT_LOADED, UNAVAILABLE MODEL_LOADING: as in Complete.
     *   INVALID_ARGUMENT PROMPT_TOO_LARGE: send a shorter text.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: the backend does not show its tokens.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.TokenizeResponse> tokenize(
        dev.inferwire.v1.TokenizeRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getTokenizeMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Joins tokens to the bytes they stand for.
     * Errors: those of Tokenize; INVALID_ARGUMENT INVALID_REQUEST for an id outside the vocabulary.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.DetokenizeResponse> detokenize(
        dev.inferwire.v1.DetokenizeRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getDetokenizeMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lists every model the caller may see, in any state, ordered by name.
     * Errors: only those of every RPC.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.ListModelsResponse> listModels(
        dev.inferwire.v1.ListModelsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListModelsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Describes one model.
     * Errors:
     *   NOT_FOUND MODEL_NOT_FOUND: name a model of ListModels.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.GetModelResponse> getModel(
        dev.inferwire.v1.GetModelRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetModelMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lists the backends with their capabilities, models and health.
     * Errors: only those of every RPC.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.ListBackendsResponse> listBackends(
        dev.inferwire.v1.ListBackendsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListBackendsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Says what the server is and how it is. For probes use grpc.health.v1.Health with the names "liveness",
     * "" or "inferwire.v1.InferenceService" (readiness) and "model/&lt;name&gt;".
     * Errors: only those of every RPC.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.HealthResponse> health(
        dev.inferwire.v1.HealthRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getHealthMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_COMPLETE = 0;
  private static final int METHODID_STREAM_COMPLETE = 1;
  private static final int METHODID_EMBED = 2;
  private static final int METHODID_COUNT_TOKENS = 3;
  private static final int METHODID_TOKENIZE = 4;
  private static final int METHODID_DETOKENIZE = 5;
  private static final int METHODID_LIST_MODELS = 6;
  private static final int METHODID_GET_MODEL = 7;
  private static final int METHODID_WATCH_MODELS = 8;
  private static final int METHODID_LIST_BACKENDS = 9;
  private static final int METHODID_HEALTH = 10;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_COMPLETE:
          serviceImpl.complete((dev.inferwire.v1.CompleteRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.CompleteResponse>) responseObserver);
          break;
        case METHODID_STREAM_COMPLETE:
          serviceImpl.streamComplete((dev.inferwire.v1.CompleteRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamCompleteResponse>) responseObserver);
          break;
        case METHODID_EMBED:
          serviceImpl.embed((dev.inferwire.v1.EmbedRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.EmbedResponse>) responseObserver);
          break;
        case METHODID_COUNT_TOKENS:
          serviceImpl.countTokens((dev.inferwire.v1.CompleteRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.CountTokensResponse>) responseObserver);
          break;
        case METHODID_TOKENIZE:
          serviceImpl.tokenize((dev.inferwire.v1.TokenizeRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.TokenizeResponse>) responseObserver);
          break;
        case METHODID_DETOKENIZE:
          serviceImpl.detokenize((dev.inferwire.v1.DetokenizeRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.DetokenizeResponse>) responseObserver);
          break;
        case METHODID_LIST_MODELS:
          serviceImpl.listModels((dev.inferwire.v1.ListModelsRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.ListModelsResponse>) responseObserver);
          break;
        case METHODID_GET_MODEL:
          serviceImpl.getModel((dev.inferwire.v1.GetModelRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.GetModelResponse>) responseObserver);
          break;
        case METHODID_WATCH_MODELS:
          serviceImpl.watchModels((dev.inferwire.v1.WatchModelsRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.WatchModelsResponse>) responseObserver);
          break;
        case METHODID_LIST_BACKENDS:
          serviceImpl.listBackends((dev.inferwire.v1.ListBackendsRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.ListBackendsResponse>) responseObserver);
          break;
        case METHODID_HEALTH:
          serviceImpl.health((dev.inferwire.v1.HealthRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.HealthResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getCompleteMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.CompleteRequest,
              dev.inferwire.v1.CompleteResponse>(
                service, METHODID_COMPLETE)))
        .addMethod(
          getStreamCompleteMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.inferwire.v1.CompleteRequest,
              dev.inferwire.v1.StreamCompleteResponse>(
                service, METHODID_STREAM_COMPLETE)))
        .addMethod(
          getEmbedMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.EmbedRequest,
              dev.inferwire.v1.EmbedResponse>(
                service, METHODID_EMBED)))
        .addMethod(
          getCountTokensMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.CompleteRequest,
              dev.inferwire.v1.CountTokensResponse>(
                service, METHODID_COUNT_TOKENS)))
        .addMethod(
          getTokenizeMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.TokenizeRequest,
              dev.inferwire.v1.TokenizeResponse>(
                service, METHODID_TOKENIZE)))
        .addMethod(
          getDetokenizeMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.DetokenizeRequest,
              dev.inferwire.v1.DetokenizeResponse>(
                service, METHODID_DETOKENIZE)))
        .addMethod(
          getListModelsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.ListModelsRequest,
              dev.inferwire.v1.ListModelsResponse>(
                service, METHODID_LIST_MODELS)))
        .addMethod(
          getGetModelMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.GetModelRequest,
              dev.inferwire.v1.GetModelResponse>(
                service, METHODID_GET_MODEL)))
        .addMethod(
          getWatchModelsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.inferwire.v1.WatchModelsRequest,
              dev.inferwire.v1.WatchModelsResponse>(
                service, METHODID_WATCH_MODELS)))
        .addMethod(
          getListBackendsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.ListBackendsRequest,
              dev.inferwire.v1.ListBackendsResponse>(
                service, METHODID_LIST_BACKENDS)))
        .addMethod(
          getHealthMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.HealthRequest,
              dev.inferwire.v1.HealthResponse>(
                service, METHODID_HEALTH)))
        .build();
  }

  private static abstract class InferenceServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    InferenceServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.inferwire.v1.InferenceProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("InferenceService");
    }
  }

  private static final class InferenceServiceFileDescriptorSupplier
      extends InferenceServiceBaseDescriptorSupplier {
    InferenceServiceFileDescriptorSupplier() {}
  }

  private static final class InferenceServiceMethodDescriptorSupplier
      extends InferenceServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    InferenceServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (InferenceServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new InferenceServiceFileDescriptorSupplier())
              .addMethod(getCompleteMethod())
              .addMethod(getStreamCompleteMethod())
              .addMethod(getEmbedMethod())
              .addMethod(getCountTokensMethod())
              .addMethod(getTokenizeMethod())
              .addMethod(getDetokenizeMethod())
              .addMethod(getListModelsMethod())
              .addMethod(getGetModelMethod())
              .addMethod(getWatchModelsMethod())
              .addMethod(getListBackendsMethod())
              .addMethod(getHealthMethod())
              .build();
        }
      }
    }
    return result;
  }
}
