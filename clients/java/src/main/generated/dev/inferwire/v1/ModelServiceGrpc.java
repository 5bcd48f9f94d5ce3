package dev.inferwire.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
 * name. Failures are told as in InferenceService.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class ModelServiceGrpc {

  private ModelServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "inferwire.v1.ModelService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest,
      dev.inferwire.v1.LoadResponse> getLoadMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Load",
      requestType = dev.inferwire.v1.LoadRequest.class,
      responseType = dev.inferwire.v1.LoadResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest,
      dev.inferwire.v1.LoadResponse> getLoadMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest, dev.inferwire.v1.LoadResponse> getLoadMethod;
    if ((getLoadMethod = ModelServiceGrpc.getLoadMethod) == null) {
      synchronized (ModelServiceGrpc.class) {
        if ((getLoadMethod = ModelServiceGrpc.getLoadMethod) == null) {
          ModelServiceGrpc.getLoadMethod = getLoadMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.LoadRequest, dev.inferwire.v1.LoadResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Load"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.LoadRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.LoadResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ModelServiceMethodDescriptorSupplier("Load"))
              .build();
        }
      }
    }
    return getLoadMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest,
      dev.inferwire.v1.StreamLoadResponse> getStreamLoadMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "StreamLoad",
      requestType = dev.inferwire.v1.LoadRequest.class,
      responseType = dev.inferwire.v1.StreamLoadResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest,
      dev.inferwire.v1.StreamLoadResponse> getStreamLoadMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.LoadRequest, dev.inferwire.v1.StreamLoadResponse> getStreamLoadMethod;
    if ((getStreamLoadMethod = ModelServiceGrpc.getStreamLoadMethod) == null) {
      synchronized (ModelServiceGrpc.class) {
        if ((getStreamLoadMethod = ModelServiceGrpc.getStreamLoadMethod) == null) {
          ModelServiceGrpc.getStreamLoadMethod = getStreamLoadMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.LoadRequest, dev.inferwire.v1.StreamLoadResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "StreamLoad"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.LoadRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.StreamLoadResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ModelServiceMethodDescriptorSupplier("StreamLoad"))
              .build();
        }
      }
    }
    return getStreamLoadMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.inferwire.v1.UnloadRequest,
      dev.inferwire.v1.UnloadResponse> getUnloadMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "Unload",
      requestType = dev.inferwire.v1.UnloadRequest.class,
      responseType = dev.inferwire.v1.UnloadResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.inferwire.v1.UnloadRequest,
      dev.inferwire.v1.UnloadResponse> getUnloadMethod() {
    io.grpc.MethodDescriptor<dev.inferwire.v1.UnloadRequest, dev.inferwire.v1.UnloadResponse> getUnloadMethod;
    if ((getUnloadMethod = ModelServiceGrpc.getUnloadMethod) == null) {
      synchronized (ModelServiceGrpc.class) {
        if ((getUnloadMethod = ModelServiceGrpc.getUnloadMethod) == null) {
          ModelServiceGrpc.getUnloadMethod = getUnloadMethod =
              io.grpc.MethodDescriptor.<dev.inferwire.v1.UnloadRequest, dev.inferwire.v1.UnloadResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "Unload"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.UnloadRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.inferwire.v1.UnloadResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ModelServiceMethodDescriptorSupplier("Unload"))
              .build();
        }
      }
    }
    return getUnloadMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static ModelServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ModelServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ModelServiceStub>() {
        @java.lang.Override
        public ModelServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ModelServiceStub(channel, callOptions);
        }
      };
    return ModelServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static ModelServiceBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ModelServiceBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ModelServiceBlockingV2Stub>() {
        @java.lang.Override
        public ModelServiceBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ModelServiceBlockingV2Stub(channel, callOptions);
        }
      };
    return ModelServiceBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static ModelServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ModelServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ModelServiceBlockingStub>() {
        @java.lang.Override
        public ModelServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ModelServiceBlockingStub(channel, callOptions);
        }
      };
    return ModelServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static ModelServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ModelServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ModelServiceFutureStub>() {
        @java.lang.Override
        public ModelServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ModelServiceFutureStub(channel, callOptions);
        }
      };
    return ModelServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Loads a model and returns when it is READY. Idempotent: the same name, source and config joins a running load or
     * returns the loaded model. A caller that goes away does not stop the load; Unload does. No default deadline.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     *   INVALID_ARGUMENT MODEL_PATH_NOT_ALLOWED: name a file beneath the operator's model roots.
     *   NOT_FOUND MODEL_FILE_NOT_FOUND, BACKEND_NOT_FOUND: name one that exists.
     *   FAILED_PRECONDITION MODEL_FILE_INVALID, TEMPLATE_INVALID: the file cannot be served as it is.
     *   FAILED_PRECONDITION MODEL_CONFIG_CONFLICT: loaded with another source or config; unload first, or set replace.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: a source or setting that this server does not serve.
     *   RESOURCE_EXHAUSTED INSUFFICIENT_MEMORY: free memory first; a retry alone is useless.
     *   FAILED_PRECONDITION LOAD_STALLED: no progress for a minute; look at the server's log.
     *   UNAVAILABLE MODEL_UNLOADING: the name is being unloaded; retry after RetryInfo's delay.
     *   ABORTED LOAD_CANCELLED: an Unload or the server's end stopped the load.
     * </pre>
     */
    default void load(dev.inferwire.v1.LoadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.LoadResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getLoadMethod(), responseObserver);
    }

    /**
     * <pre>
     * The same as Load, with the way there: any number of `progress`, then exactly one `loaded`. A caller that stops
     * watching does not stop the load.
     * Errors: those of Load.
     * </pre>
     */
    default void streamLoad(dev.inferwire.v1.LoadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamLoadResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getStreamLoadMethod(), responseObserver);
    }

    /**
     * <pre>
     * Unloads a model: new requests are refused at once, running ones may finish within the drain timeout, those left
     * end with MODEL_UNLOADED, then the engine process ends and its memory is free. Idempotent: an unknown or unloaded
     * name is OK with was_loaded false. It also stops a running load.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     * </pre>
     */
    default void unload(dev.inferwire.v1.UnloadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.UnloadResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getUnloadMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service ModelService.
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public static abstract class ModelServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return ModelServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service ModelService.
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public static final class ModelServiceStub
      extends io.grpc.stub.AbstractAsyncStub<ModelServiceStub> {
    private ModelServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ModelServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ModelServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Loads a model and returns when it is READY. Idempotent: the same name, source and config joins a running load or
     * returns the loaded model. A caller that goes away does not stop the load; Unload does. No default deadline.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     *   INVALID_ARGUMENT MODEL_PATH_NOT_ALLOWED: name a file beneath the operator's model roots.
     *   NOT_FOUND MODEL_FILE_NOT_FOUND, BACKEND_NOT_FOUND: name one that exists.
     *   FAILED_PRECONDITION MODEL_FILE_INVALID, TEMPLATE_INVALID: the file cannot be served as it is.
     *   FAILED_PRECONDITION MODEL_CONFIG_CONFLICT: loaded with another source or config; unload first, or set replace.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: a source or setting that this server does not serve.
     *   RESOURCE_EXHAUSTED INSUFFICIENT_MEMORY: free memory first; a retry alone is useless.
     *   FAILED_PRECONDITION LOAD_STALLED: no progress for a minute; look at the server's log.
     *   UNAVAILABLE MODEL_UNLOADING: the name is being unloaded; retry after RetryInfo's delay.
     *   ABORTED LOAD_CANCELLED: an Unload or the server's end stopped the load.
     * </pre>
     */
    public void load(dev.inferwire.v1.LoadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.LoadResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getLoadMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * The same as Load, with the way there: any number of `progress`, then exactly one `loaded`. A caller that stops
     * watching does not stop the load.
     * Errors: those of Load.
     * </pre>
     */
    public void streamLoad(dev.inferwire.v1.LoadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamLoadResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getStreamLoadMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Unloads a model: new requests are refused at once, running ones may finish within the drain timeout, those left
     * end with MODEL_UNLOADED, then the engine process ends and its memory is free. Idempotent: an unknown or unloaded
     * name is OK with was_loaded false. It also stops a running load.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     * </pre>
     */
    public void unload(dev.inferwire.v1.UnloadRequest request,
        io.grpc.stub.StreamObserver<dev.inferwire.v1.UnloadResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getUnloadMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service ModelService.
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public static final class ModelServiceBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<ModelServiceBlockingV2Stub> {
    private ModelServiceBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ModelServiceBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ModelServiceBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Loads a model and returns when it is READY. Idempotent: the same name, source and config joins a running load or
     * returns the loaded model. A caller that goes away does not stop the load; Unload does. No default deadline.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     *   INVALID_ARGUMENT MODEL_PATH_NOT_ALLOWED: name a file beneath the operator's model roots.
     *   NOT_FOUND MODEL_FILE_NOT_FOUND, BACKEND_NOT_FOUND: name one that exists.
     *   FAILED_PRECONDITION MODEL_FILE_INVALID, TEMPLATE_INVALID: the file cannot be served as it is.
     *   FAILED_PRECONDITION MODEL_CONFIG_CONFLICT: loaded with another source or config; unload first, or set replace.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: a source or setting that this server does not serve.
     *   RESOURCE_EXHAUSTED INSUFFICIENT_MEMORY: free memory first; a retry alone is useless.
     *   FAILED_PRECONDITION LOAD_STALLED: no progress for a minute; look at the server's log.
     *   UNAVAILABLE MODEL_UNLOADING: the name is being unloaded; retry after RetryInfo's delay.
     *   ABORTED LOAD_CANCELLED: an Unload or the server's end stopped the load.
     * </pre>
     */
    public dev.inferwire.v1.LoadResponse load(dev.inferwire.v1.LoadRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getLoadMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * The same as Load, with the way there: any number of `progress`, then exactly one `loaded`. A caller that stops
     * watching does not stop the load.
     * Errors: those of Load.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.inferwire.v1.StreamLoadResponse>
        streamLoad(dev.inferwire.v1.LoadRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getStreamLoadMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Unloads a model: new requests are refused at once, running ones may finish within the drain timeout, those left
     * end with MODEL_UNLOADED, then the engine process ends and its memory is free. Idempotent: an unknown or unloaded
     * name is OK with was_loaded false. It also stops a running load.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     * </pre>
     */
    public dev.inferwire.v1.UnloadResponse unload(dev.inferwire.v1.UnloadRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getUnloadMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service ModelService.
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public static final class ModelServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<ModelServiceBlockingStub> {
    private ModelServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ModelServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ModelServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Loads a model and returns when it is READY. Idempotent: the same name, source and config joins a running load or
     * returns the loaded model. A caller that goes away does not stop the load; Unload does. No default deadline.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     *   INVALID_ARGUMENT MODEL_PATH_NOT_ALLOWED: name a file beneath the operator's model roots.
     *   NOT_FOUND MODEL_FILE_NOT_FOUND, BACKEND_NOT_FOUND: name one that exists.
     *   FAILED_PRECONDITION MODEL_FILE_INVALID, TEMPLATE_INVALID: the file cannot be served as it is.
     *   FAILED_PRECONDITION MODEL_CONFIG_CONFLICT: loaded with another source or config; unload first, or set replace.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: a source or setting that this server does not serve.
     *   RESOURCE_EXHAUSTED INSUFFICIENT_MEMORY: free memory first; a retry alone is useless.
     *   FAILED_PRECONDITION LOAD_STALLED: no progress for a minute; look at the server's log.
     *   UNAVAILABLE MODEL_UNLOADING: the name is being unloaded; retry after RetryInfo's delay.
     *   ABORTED LOAD_CANCELLED: an Unload or the server's end stopped the load.
     * </pre>
     */
    public dev.inferwire.v1.LoadResponse load(dev.inferwire.v1.LoadRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getLoadMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * The same as Load, with the way there: any number of `progress`, then exactly one `loaded`. A caller that stops
     * watching does not stop the load.
     * Errors: those of Load.
     * </pre>
     */
    public java.util.Iterator<dev.inferwire.v1.StreamLoadResponse> streamLoad(
        dev.inferwire.v1.LoadRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getStreamLoadMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Unloads a model: new requests are refused at once, running ones may finish within the drain timeout, those left
     * end with MODEL_UNLOADED, then the engine process ends and its memory is free. Idempotent: an unknown or unloaded
     * name is OK with was_loaded false. It also stops a running load.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     * </pre>
     */
    public dev.inferwire.v1.UnloadResponse unload(dev.inferwire.v1.UnloadRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getUnloadMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service ModelService.
   * <pre>
   * Loads and unloads models. Keep it from callers who should only complete: a mesh policy can match this service's
   * name. Failures are told as in InferenceService.
   * </pre>
   */
  public static final class ModelServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<ModelServiceFutureStub> {
    private ModelServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ModelServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ModelServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Loads a model and returns when it is READY. Idempotent: the same name, source and config joins a running load or
     * returns the loaded model. A caller that goes away does not stop the load; Unload does. No default deadline.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     *   INVALID_ARGUMENT MODEL_PATH_NOT_ALLOWED: name a file beneath the operator's model roots.
     *   NOT_FOUND MODEL_FILE_NOT_FOUND, BACKEND_NOT_FOUND: name one that exists.
     *   FAILED_PRECONDITION MODEL_FILE_INVALID, TEMPLATE_INVALID: the file cannot be served as it is.
     *   FAILED_PRECONDITION MODEL_CONFIG_CONFLICT: loaded with another source or config; unload first, or set replace.
     *   FAILED_PRECONDITION UNSUPPORTED_BY_BACKEND: a source or setting that this server does not serve.
     *   RESOURCE_EXHAUSTED INSUFFICIENT_MEMORY: free memory first; a retry alone is useless.
     *   FAILED_PRECONDITION LOAD_STALLED: no progress for a minute; look at the server's log.
     *   UNAVAILABLE MODEL_UNLOADING: the name is being unloaded; retry after RetryInfo's delay.
     *   ABORTED LOAD_CANCELLED: an Unload or the server's end stopped the load.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.LoadResponse> load(
        dev.inferwire.v1.LoadRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getLoadMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Unloads a model: new requests are refused at once, running ones may finish within the drain timeout, those left
     * end with MODEL_UNLOADED, then the engine process ends and its memory is free. Idempotent: an unknown or unloaded
     * name is OK with was_loaded false. It also stops a running load.
     * Errors:
     *   INVALID_ARGUMENT INVALID_REQUEST: mend the field named by the violation.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.inferwire.v1.UnloadResponse> unload(
        dev.inferwire.v1.UnloadRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getUnloadMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_LOAD = 0;
  private static final int METHODID_STREAM_LOAD = 1;
  private static final int METHODID_UNLOAD = 2;

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
        case METHODID_LOAD:
          serviceImpl.load((dev.inferwire.v1.LoadRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.LoadResponse>) responseObserver);
          break;
        case METHODID_STREAM_LOAD:
          serviceImpl.streamLoad((dev.inferwire.v1.LoadRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.StreamLoadResponse>) responseObserver);
          break;
        case METHODID_UNLOAD:
          serviceImpl.unload((dev.inferwire.v1.UnloadRequest) request,
              (io.grpc.stub.StreamObserver<dev.inferwire.v1.UnloadResponse>) responseObserver);
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
          getLoadMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.LoadRequest,
              dev.inferwire.v1.LoadResponse>(
                service, METHODID_LOAD)))
        .addMethod(
          getStreamLoadMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.inferwire.v1.LoadRequest,
              dev.inferwire.v1.StreamLoadResponse>(
                service, METHODID_STREAM_LOAD)))
        .addMethod(
          getUnloadMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.inferwire.v1.UnloadRequest,
              dev.inferwire.v1.UnloadResponse>(
                service, METHODID_UNLOAD)))
        .build();
  }

  private static abstract class ModelServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    ModelServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.inferwire.v1.ModelsProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("ModelService");
    }
  }

  private static final class ModelServiceFileDescriptorSupplier
      extends ModelServiceBaseDescriptorSupplier {
    ModelServiceFileDescriptorSupplier() {}
  }

  private static final class ModelServiceMethodDescriptorSupplier
      extends ModelServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    ModelServiceMethodDescriptorSupplier(java.lang.String methodName) {
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
      synchronized (ModelServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new ModelServiceFileDescriptorSupplier())
              .addMethod(getLoadMethod())
              .addMethod(getStreamLoadMethod())
              .addMethod(getUnloadMethod())
              .build();
        }
      }
    }
    return result;
  }
}
