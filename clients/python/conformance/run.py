"""Answers the lines of tests/conformance with this client, as a user would call it."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import sys
from collections.abc import Generator, Iterator
from typing import Any

import grpc

from inferwire import Client, InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2

CLIENTS: dict[str, Client] = {}
REQUESTS: dict[str, Any] = {
    "Complete": pb.CompleteRequest,
    "StreamComplete": pb.CompleteRequest,
    "GatherStream": pb.CompleteRequest,
    "CountTokens": pb.CompleteRequest,
    "Embed": pb.EmbedRequest,
    "Tokenize": pb.TokenizeRequest,
    "Detokenize": pb.DetokenizeRequest,
    "Load": models_pb2.LoadRequest,
    "StreamLoad": models_pb2.LoadRequest,
    "Unload": models_pb2.UnloadRequest,
    "GetModel": pb.GetModelRequest,
}


def client(connect: dict[str, Any]) -> Client:
    """Returns the client of a `connect` object, the same for the same."""
    key = json.dumps(connect, sort_keys=True)
    if key not in CLIENTS:
        tls: Any = connect.get("tls", False)
        if tls:
            files = [
                pathlib.Path(tls[name]).read_bytes() if name in tls else None
                for name in ("ca", "key", "cert")
            ]
            tls = grpc.ssl_channel_credentials(*files)
        more: dict[str, Any] = {}
        if "default_timeout_ms" in connect:
            more["default_timeout"] = connect["default_timeout_ms"] / 1000
        if "balance" in connect:
            more["balance"] = connect["balance"]
        CLIENTS[key] = Client(connect["target"], token=connect.get("token"), tls=tls, **more)
    return CLIENTS[key]


def answer(line: dict[str, Any]) -> dict[str, Any]:
    """Makes one call."""
    told: dict[str, Any] = {"id": line["id"], "messages": [], "error": None, "left_early": False}
    call = line["call"]
    left = call.get("cancel_after")
    try:
        with contextlib.closing(messages(client(line["connect"]), call)) as received:
            for message in received:
                told["messages"].append(base64.b64encode(message.SerializeToString()).decode())
                if left is not None and len(told["messages"]) >= left:
                    told["left_early"] = True
                    break
    except InferwireError as error:
        told["error"] = {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
            "retry_delay_ms": None if error.retry_delay is None else round(error.retry_delay * 1000),
            "violations": [violation._asdict() for violation in error.violations],
            "resource": error.resource,
        }
    return told


def messages(of: Client, call: dict[str, Any]) -> Generator[Any]:
    """Yields what a call brings; leaving it ends the call."""
    method = call["method"]
    timeout = call["timeout_ms"] / 1000 if "timeout_ms" in call else None
    data = base64.b64decode(call["request"])
    if method.startswith("Health") and method != "Health":
        yield from health(of, method, data, timeout)
        return
    request: Any = REQUESTS[method].FromString(data) if method in REQUESTS else None
    times: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    own = {**times, "request_id": call.get("metadata", {}).get("x-request-id")}
    match method:
        case "Complete":
            yield of.complete(request, **own)
        case "GatherStream":
            with of.stream(request, **own) as stream:
                yield stream.gather()
        case "StreamComplete":
            with of.stream(request, **own) as stream:
                yield from stream
        case "Embed":
            optional = {
                name: getattr(request, name)
                for name in ("dimensions", "normalize", "pooling")
                if name in {field.name for field, _ in request.ListFields()}
            }
            yield of.embed(list(request.inputs), model=request.model or None, **optional, **times)
        case "CountTokens":
            yield of.count_tokens(request, **times)
        case "Tokenize":
            yield of.tokenize(request.text, model=request.model or None, **times)
        case "Detokenize":
            joined = of.detokenize(list(request.token_ids), model=request.model or None, **times)
            yield pb.DetokenizeResponse(data=joined)
        case "ListModels":
            yield of.list_models(**times)
        case "GetModel":
            yield pb.GetModelResponse(model=of.get_model(request.model, **times))
        case "WatchModels":
            with of.watch_models(**times) as snapshots:
                yield from snapshots
        case "ListBackends":
            yield pb.ListBackendsResponse(backends=of.list_backends(**times))
        case "Health":
            yield of.health(**times)
        case "Load":
            yield of.load(request, **times)
        case "StreamLoad":
            with of.stream_load(request, **times) as events:
                yield from events
        case "Unload":
            drain = (
                request.drain_timeout.ToTimedelta().total_seconds()
                if request.HasField("drain_timeout")
                else None
            )
            yield of.unload(request.model, drain_timeout=drain, **times)
        case _:
            raise ValueError(f"no method {method}")


def health(of: Client, method: str, data: bytes, timeout: float | None) -> Iterator[Any]:
    """The standard health service, on the client's own channel."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(of.channel)
    request = health_pb2.HealthCheckRequest.FromString(data)
    try:
        if method == "HealthCheck":
            yield stub.Check(request, timeout=timeout)
            return
        watch = stub.Watch(request, timeout=timeout)
        try:
            yield from watch
        finally:
            watch.cancel()
    except grpc.RpcError as error:
        raise InferwireError.of(error) from error


def main() -> None:
    """Answers until standard input is closed."""
    for text in sys.stdin:
        line = json.loads(text)
        try:
            told = answer(line)
        except Exception as error:  # noqa: BLE001
            told = {"id": line.get("id"), "fault": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
