"""How tests ask a backend without a server around it."""

from __future__ import annotations

import contextlib
import time

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.backends.base import Call, as_message
from inferwire_server.backends.provider import RemoteBackend


def chat(text: str = "Hello?", model: str = "") -> pb.CompleteRequest:
    """Returns a request with one question."""
    request = pb.CompleteRequest(model=model)
    request.chat.messages.add(role=pb.ROLE_USER).parts.add(text=text)
    return request


def new_call(seconds: float = 60.0) -> Call:
    """Returns what a request brings beside its message, with so much time."""
    return Call("id", "anonymous", time.monotonic() + seconds)


async def collect(
    backend: RemoteBackend, request: pb.CompleteRequest, call: Call | None = None
) -> pb.CompleteResponse:
    """Returns the gathered answer, having checked the law: `started` first, no empty delta, one completion, last."""
    asked = pb.CompleteRequest()
    asked.CopyFrom(request)
    asked.model = asked.model or backend.model
    gatherer, kinds = Gatherer(), []
    async with contextlib.aclosing(backend.stream(asked, call or new_call())) as events:
        async for event in events:
            message = as_message(event)
            kind = message.WhichOneof("event")
            kinds.append(kind)
            delta = getattr(message, kind or "started")
            assert kind in ("started", "progress", "completion") or delta.ByteSize() > 0, "an empty delta"
            gatherer.add(message)
    assert "started" == kinds[0]
    assert 1 == kinds.count("started")
    assert "completion" == kinds[-1]
    assert 1 == kinds.count("completion")
    return gatherer.response()
