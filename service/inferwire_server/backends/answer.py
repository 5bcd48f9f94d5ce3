"""A provider's answer in our own terms: bytes in, lawful events out, at any split. Sans-IO.

`AnswerParser` is what a wire format fills in; `Deltas` keeps the law of the stream for it.
"""

from __future__ import annotations

import abc
import secrets

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors

from .lines import EventReader, LineReader, ServerSentEvent

# So many events in a row that say nothing are no answer.
MAX_IDLE_EVENTS = 10_000


class Deltas:
    """The events that one piece of the answer makes: none empty, a tool call told once and in order.

    Neighbours of one kind that come in the same piece are one event.
    """

    def __init__(self) -> None:
        self._events: list[pb.StreamCompleteResponse] = []
        self._calls: list[_Call] = []
        self._logprobs: list[pb.TokenLogprob] = []

    def __repr__(self) -> str:
        return f"<Deltas [{len(self._events)} events | calls {len(self._calls)}]>"

    @property
    def num_calls(self) -> int:
        """Tool calls so far."""
        return len(self._calls)

    def text(self, text: str, logprobs: list[pb.TokenLogprob] | None = None) -> None:
        """Adds text. Log probabilities of tokens without text of their own wait for the next text."""
        if logprobs:
            self._logprobs += logprobs
        if not text:
            return
        last = self._last("text")
        if last is not None:
            last.text.text += text
        else:
            last = pb.StreamCompleteResponse(text=pb.TextDelta(text=text))
            self._events.append(last)
        if self._logprobs:
            last.text.logprobs.extend(self.rest_logprobs())

    def rest_logprobs(self) -> list[pb.TokenLogprob]:
        """Returns the log probabilities that still wait."""
        logprobs, self._logprobs = self._logprobs, []
        return logprobs

    def reasoning(self, text: str, signature: bytes = b"") -> None:
        """Adds a thought; a signature ends it."""
        if not text and not signature:
            return
        last = self._last("reasoning")
        if last is not None and not last.reasoning.signature:
            last.reasoning.text += text
            last.reasoning.signature = signature
        else:
            self._events.append(
                pb.StreamCompleteResponse(reasoning=pb.ReasoningDelta(text=text, signature=signature))
            )

    def tool_call(
        self, key: object, *, id: str = "", name: str = "", arguments: str = "", signature: bytes = b""
    ) -> None:
        """Adds to the call that the provider tells apart by `key`. Its first piece has the name.

        Raises errors.UpstreamProtocolError for a call without a name, or one that goes on after the next has begun.
        """
        call = self._calls[-1] if self._calls else None
        if call is None or call.key != key:
            if any(earlier.key == key for earlier in self._calls):
                raise broken("a tool call goes on after the next one has begun")
            if not name:
                raise broken("a tool call has no name")
            self.end_call()
            call = _Call(key)
            self._calls.append(call)
            self._events.append(
                pb.StreamCompleteResponse(
                    tool_call=pb.ToolCallDelta(
                        index=len(self._calls) - 1,
                        id=id or f"call_{secrets.token_hex(12)}",
                        name=name,
                        arguments=arguments,
                        signature=signature,
                    )
                )
            )
        elif arguments or signature:
            last = self._last("tool_call")
            if last is None:
                last = pb.StreamCompleteResponse(tool_call=pb.ToolCallDelta(index=len(self._calls) - 1))
                self._events.append(last)
            last.tool_call.arguments += arguments
            last.tool_call.signature += signature
        call.has_arguments = call.has_arguments or bool(arguments)

    def end_call(self) -> None:
        """Says that the last call is whole: one without arguments has the empty object."""
        if self._calls and not self._calls[-1].has_arguments:
            self.tool_call(self._calls[-1].key, arguments="{}")

    def take(self) -> list[pb.StreamCompleteResponse]:
        """Returns the events since the last time."""
        events, self._events = self._events, []
        return events

    def _last(self, kind: str) -> pb.StreamCompleteResponse | None:
        return self._events[-1] if self._events and self._events[-1].WhichOneof("event") == kind else None


class _Call:
    def __init__(self, key: object) -> None:
        self.key = key
        self.has_arguments = False


class AnswerParser(abc.ABC):
    """One answer of a provider. `feed` until `completion` is set or the body ends, then `close`.

    `completion` is set by the provider's own terminal event, and by nothing else: without it there was no answer.
    """

    def __init__(self) -> None:
        self.deltas = Deltas()
        self.completion: pb.Completion | None = None
        self._num_idle = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{'completed' if self.completion else 'open'} | {self.deltas!r}]>"

    def feed(self, data: bytes) -> list[pb.StreamCompleteResponse]:
        """Returns the deltas that `data` completes. Raises one errors.ServingError."""
        try:
            self._feed(data)
        except UNREADABLE as error:
            raise unreadable(error) from None
        return self.deltas.take()

    def close(self) -> list[pb.StreamCompleteResponse]:
        """Takes the end of the body. Raises errors.UpstreamTruncated when the provider had not ended its answer."""
        try:
            self._close()
        except UNREADABLE as error:
            raise unreadable(error) from None
        if self.completion is None:
            raise errors.UpstreamTruncated("the provider's stream ended before its answer did")
        return self.deltas.take()

    @abc.abstractmethod
    def _feed(self, data: bytes) -> None: ...

    def _close(self) -> None:
        """Reads what the end of the body completes. Nothing, for most."""

    def _count_idle(self, *, is_idle: bool) -> None:
        """Counts events that say nothing, one after the other. Raises errors.UpstreamStalled for too many."""
        self._num_idle = self._num_idle + 1 if is_idle else 0
        if self._num_idle > MAX_IDLE_EVENTS:
            raise errors.UpstreamStalled(
                "the provider sent nothing of use",
                detail=f"{MAX_IDLE_EVENTS} events in a row without a delta",
            )

    def _complete(
        self, reason: pb.FinishReason, raw: str = "", usage: pb.Usage | None = None, stop_string: str = ""
    ) -> None:
        """Ends the answer. A stop after a tool call is TOOL_CALLS."""
        # Under LENGTH and its like a call may be cut short; else one without arguments has the empty object.
        if reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_TOOL_CALLS):
            self.deltas.end_call()
            reason = pb.FINISH_REASON_TOOL_CALLS if self.deltas.num_calls else pb.FINISH_REASON_STOP
        self.completion = pb.Completion(
            finish_reason=reason, raw_finish_reason=raw, usage=usage, logprobs=self.deltas.rest_logprobs()
        )
        if stop_string:
            self.completion.stop_string = stop_string


class EventStreamParser(AnswerParser):
    """An answer as server-sent events."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = EventReader()

    def _feed(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            if self.completion is None:
                self._take(event)

    def _close(self) -> None:
        for event in self._reader.close():
            if self.completion is None:
                self._take(event)

    @abc.abstractmethod
    def _take(self, event: ServerSentEvent) -> None:
        """Reads one event. Raises errors.ServingError or msgspec.MsgspecError."""


class JsonLinesParser(AnswerParser):
    """An answer as one JSON value per line."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = LineReader()

    def _feed(self, data: bytes) -> None:
        for line in self._reader.feed(data):
            if line.strip() and self.completion is None:
                self._take(line)

    def _close(self) -> None:
        # A last line without its end is whole if it can be read.
        if (rest := self._reader.close()).strip() and self.completion is None:
            try:
                self._take(rest)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                pass  # cut in two: what is missing is the end, and not the form

    @abc.abstractmethod
    def _take(self, line: bytes) -> None:
        """Reads one line. Raises errors.ServingError or msgspec.MsgspecError."""


# What msgspec raises for bytes that are no JSON, or not the JSON that was expected: also for broken UTF-8 and deep nesting.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def unreadable(error: Exception) -> errors.UpstreamProtocolError:
    """Returns the failure for one of UNREADABLE. msgspec tells the place and the type, never the value; the others tell more."""
    return broken(str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__)


def broken(detail: str) -> errors.UpstreamProtocolError:
    """Returns the failure of an answer that breaks its own format. `detail` is for the log and quotes nobody."""
    return errors.UpstreamProtocolError("the provider's answer breaks its own format", detail=detail)
