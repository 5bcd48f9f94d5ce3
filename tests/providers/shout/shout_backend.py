"""A backend that answers the last question in capitals, word by word."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.backends.base import Call
from inferwire_server.backends.provider import Provider


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`mark` stands behind the last word."""

    mark: str = "!"


class Shout(Provider):
    """It honours chats and nothing else; what a request asks for beyond that is refused before it comes here."""

    display_name = "Shout"
    supported = frozenset({"chat"})
    Options = Options

    async def answer(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """Yields the words, and then the completion."""
        assert isinstance(self.options, Options), "of this class"
        asked = [message for message in request.chat.messages if message.role == pb.ROLE_USER]
        text = "".join(part.text for message in asked[-1:] for part in message.parts).upper()
        for index, word in enumerate(f"{text}{self.options.mark}".split()):
            yield pb.StreamCompleteResponse(text=pb.TextDelta(text=f" {word}" if index else word))
        yield pb.StreamCompleteResponse(completion=pb.Completion(finish_reason=pb.FINISH_REASON_STOP))
