"""Calls a method that it learns of by reflection alone: `reflected.py TARGET SERVICE METHOD`, the request as JSON on
standard input. Prints a line of JSON per message, and last one with the status. Has no generated code of the contract.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main(target: str, service_name: str, method_name: str) -> None:
    with grpc.insecure_channel(target) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(service_name).FindMethodByName(method_name)
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict(json.load(sys.stdin), request, descriptor_pool=pool)
        try:
            for message in call(channel, method, request):
                print(json_format.MessageToJson(message, indent=None))
        except grpc.RpcError as error:
            trailers: dict[str, Any] = dict(error.trailing_metadata())
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
                detail.Unpack(info)
            print(json.dumps({"code": error.code().name, "reason": info.reason}))
        else:
            print(json.dumps({"code": "OK", "reason": ""}))
    assert not any(name.split(".")[0].startswith("inferwire") for name in sys.modules), "no generated code"


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any) -> Iterator[Any]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    serializers = {
        "request_serializer": lambda message: message.SerializeToString(),
        "response_deserializer": message_factory.GetMessageClass(method.output_type).FromString,
    }
    if method.server_streaming:
        yield from channel.unary_stream(path, **serializers)(request, timeout=60)
    else:
        yield channel.unary_unary(path, **serializers)(request, timeout=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
