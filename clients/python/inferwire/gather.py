"""A stream into the unary answer. Owns what "the concatenation of the deltas" means.

The client and the server use this same code, so the two doors of a completion agree by construction. Imports messages
only, never grpc.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from inferwire.v1.inference_pb2 import (
    CompleteResponse,
    Completion,
    Message,
    Part,
    Reasoning,
    ReasoningDelta,
    Role,
    Started,
    StreamCompleteResponse,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)


class Gatherer:
    """Takes the events of one stream in order and gives the answer that Complete would have given.

    Parts stand in the order of their first delta:

    - text extends the last part when that is text, else it begins one;
    - reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
    - a tool call is one part wherever its deltas stand, told apart by its index.

    Token ids and logprobs concatenate over all events, those of the completion included. Events of an unknown kind and
    progress leave no trace.
    """

    def __init__(self) -> None:
        self._started: Started | None = None
        self._completion: Completion | None = None
        self._parts: list[_Text | _Thought | _Call] = []
        self._calls: dict[int, _Call] = {}
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def __repr__(self) -> str:
        state = "new" if self._started is None else "started"
        if self._completion is not None:
            state = "completed"
        return f"<Gatherer [{state} | parts {len(self._parts)} | token ids {len(self._token_ids)}]>"

    def add(self, event: StreamCompleteResponse) -> None:
        """Takes the next event, which must not change afterwards."""
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
            case "text":
                self._add_text(event.text)
            case "reasoning":
                self._add_reasoning(event.reasoning)
            case "tool_call":
                self._add_tool_call(event.tool_call)
            case "completion":
                self._completion = event.completion
                self._add_tokens(event.completion)
            case "progress" | None:
                pass

    def response(self) -> CompleteResponse:
        """Returns the answer so far, as a new message. `completion` is unset until its event came."""
        return CompleteResponse(
            started=self._started,
            message=Message(role=Role.ROLE_ASSISTANT, parts=[part.build() for part in self._parts]),
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            completion=self._completion,
        )

    def _add_text(self, delta: TextDelta) -> None:
        self._add_tokens(delta)
        if not delta.text:
            return
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _Text):
            last = _Text()
            self._parts.append(last)
        last.pieces.append(delta.text)

    def _add_reasoning(self, delta: ReasoningDelta) -> None:
        self._add_tokens(delta)
        if not delta.text and not delta.signature:
            return
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _Thought) or last.signature:
            last = _Thought()
            self._parts.append(last)
        last.pieces.append(delta.text)
        last.signature = delta.signature

    def _add_tool_call(self, delta: ToolCallDelta) -> None:
        self._add_tokens(delta)
        call = self._calls.get(delta.index)
        if call is None:
            call = self._calls[delta.index] = _Call()
            self._parts.append(call)
        call.id = call.id or delta.id
        call.name = call.name or delta.name
        call.pieces.append(delta.arguments)
        call.signature += delta.signature

    def _add_tokens(self, delta: TextDelta | ReasoningDelta | ToolCallDelta | Completion) -> None:
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)


def gather(events: Iterable[StreamCompleteResponse]) -> CompleteResponse:
    """Reads `events` to their end and returns the answer.

    Raises:
        ValueError: they end without a completion. A CompletionStream raises its own InferwireError before that.
    """
    gatherer = Gatherer()
    for event in events:
        gatherer.add(event)
    response = gatherer.response()
    if not response.HasField("completion"):
        raise ValueError("the events end without a completion; the answer would not be whole")
    return response


# Pieces are joined once at the end: adding to a message's string copies it anew each time.


@dataclasses.dataclass
class _Text:
    pieces: list[str] = dataclasses.field(default_factory=list)

    def build(self) -> Part:
        return Part(text="".join(self.pieces))


@dataclasses.dataclass
class _Thought:
    pieces: list[str] = dataclasses.field(default_factory=list)
    signature: bytes = b""

    def build(self) -> Part:
        return Part(reasoning=Reasoning(text="".join(self.pieces), signature=self.signature))


@dataclasses.dataclass
class _Call:
    id: str = ""
    name: str = ""
    pieces: list[str] = dataclasses.field(default_factory=list)
    signature: bytes = b""

    def build(self) -> Part:
        arguments = "".join(self.pieces)
        return Part(
            tool_call=ToolCall(id=self.id, name=self.name, arguments=arguments, signature=self.signature)
        )
