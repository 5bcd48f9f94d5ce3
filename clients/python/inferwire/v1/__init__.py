"""The contract's generated messages and stubs. `*_pb2` are messages alone; only `*_pb2_grpc` imports grpc."""
