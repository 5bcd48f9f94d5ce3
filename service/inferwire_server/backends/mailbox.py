"""Where the events of one stream wait for its reader.

Never blocks the writer and never grows without bound: deltas of a kind that wait merge into one, so what waits is at most the
rest of one answer, which max_tokens bounds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors


class Mailbox:
    """A queue of events that ends with a completion or a failure. One writer, one reader, one event loop.

    `num_tokens` is how many tokens the events so far stand for; the writer keeps it.
    """

    def __init__(self) -> None:
        self._events: deque[pb.StreamCompleteResponse] = deque()
        self._error: errors.ServingError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self.ended = False
        self.num_tokens = 0

    def __repr__(self) -> str:
        return f"<Mailbox [{len(self._events)} events | {'ended' if self.ended else 'open'}]>"

    def put(self, events: Iterable[pb.StreamCompleteResponse]) -> None:
        """Adds events in order. After a completion the mailbox has ended."""
        for event in events:
            if not (self._events and _merge(self._events[-1], event)):
                self._events.append(event)
            self.ended = self.ended or event.WhichOneof("event") == "completion"
        self._wake()

    def fail(self, error: errors.ServingError) -> None:
        """Ends the stream with a failure, behind the events that wait already. The first end counts."""
        if not self.ended:
            self._error = error
            self.ended = True
            self._wake()

    async def __aiter__(self) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """Yields the events; raises the failure in their place when there is one."""
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if event.WhichOneof("event") == "completion":
                    return
            if self._error is not None:
                raise self._error
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _merge(waiting: pb.StreamCompleteResponse, event: pb.StreamCompleteResponse) -> bool:
    """Appends a delta to the one that waits before it. False when the two cannot be one."""
    kind = event.WhichOneof("event")
    if waiting.WhichOneof("event") != kind:
        return False
    match kind:
        case "text":
            waiting.text.text += event.text.text
        case "reasoning" if not waiting.reasoning.signature:
            waiting.reasoning.text += event.reasoning.text
            waiting.reasoning.signature = event.reasoning.signature
        case "tool_call" if waiting.tool_call.index == event.tool_call.index:
            waiting.tool_call.arguments += event.tool_call.arguments
            waiting.tool_call.signature += event.tool_call.signature
        case _:
            return False
    delta, more = getattr(waiting, kind), getattr(event, kind)
    delta.token_ids.extend(more.token_ids)
    delta.logprobs.extend(more.logprobs)
    return True
