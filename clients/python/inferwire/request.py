"""The keyword shorthand of requests: what callers write most, turned into the contract's messages.

Owns the one rule of it: None leaves a field unset, and zero is said as zero. Imports messages only; whether values are
in range is the server's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration

from inferwire.v1.inference_pb2 import (
    Chat,
    CompleteRequest,
    EmbedRequest,
    Message,
    Pooling,
    ReasoningOptions,
    ResponseFormat,
    Sampling,
    Stopping,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from inferwire.v1.models_pb2 import LoadConfig, LoadRequest, LocalSource, ModelSource, UnloadRequest


class Shorthand(TypedDict, total=False):
    """A completion in keywords. Each has the meaning of the field of its name; for the rest, send a CompleteRequest.

    `tool_choice` is a mode or the name of the tool that must be called; `reasoning` may be plain True or False.
    """

    model: str | None
    prompt: str | None
    chat: Sequence[Message] | None
    tools: Sequence[Tool] | None
    tool_choice: ToolChoiceMode | str | None
    reasoning: ReasoningOptions | bool | None
    response_format: ResponseFormat | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    time_limit: float | None


def completion(request: CompleteRequest | None, shorthand: Shorthand) -> CompleteRequest:
    """Returns the request that is sent: `request` as it is, or one made from the shorthand; both is a TypeError."""
    if request is not None:
        if shorthand:
            raise TypeError(f"a CompleteRequest stands alone; set {', '.join(shorthand)} in it instead")
        return request
    prompt, chat, tools = shorthand.get("prompt"), shorthand.get("chat"), shorthand.get("tools")
    if prompt is not None and chat is not None:
        raise TypeError("give a prompt or a chat, not both")
    for name in ("tools", "tool_choice", "reasoning"):
        if shorthand.get(name) is not None and chat is None:
            raise TypeError(f"{name} belongs to a chat")
    sampling = Sampling(
        temperature=shorthand.get("temperature"),
        top_k=shorthand.get("top_k"),
        top_p=shorthand.get("top_p"),
        min_p=shorthand.get("min_p"),
        seed=shorthand.get("seed"),
    )
    stop = shorthand.get("stop")
    stopping = Stopping(
        max_tokens=shorthand.get("max_tokens"),
        stop=[stop] if isinstance(stop, str) else stop,
        time_limit=duration(shorthand.get("time_limit")),
    )
    # A message in which nothing is set stays unset itself.
    return CompleteRequest(
        model=shorthand.get("model"),
        prompt=prompt,
        chat=None
        if chat is None
        else Chat(
            messages=chat,
            tools=tools,
            tool_choice=_tool_choice(shorthand.get("tool_choice")),
            reasoning=_reasoning(shorthand.get("reasoning")),
        ),
        response_format=shorthand.get("response_format"),
        sampling=sampling if sampling.ByteSize() else None,
        stopping=stopping if stopping.ByteSize() else None,
    )


def _tool_choice(choice: ToolChoiceMode | str | None) -> ToolChoice | None:
    if choice is None:
        return None
    return ToolChoice(name=choice) if isinstance(choice, str) else ToolChoice(mode=choice)


def _reasoning(reasoning: ReasoningOptions | bool | None) -> ReasoningOptions | None:
    return ReasoningOptions(enabled=reasoning) if isinstance(reasoning, bool) else reasoning


def embedding(
    inputs: str | Sequence[str],
    model: str | None,
    dimensions: int | None,
    normalize: bool | None,
    pooling: Pooling | None,
) -> EmbedRequest:
    """Returns the request for one vector per text; a single text counts as a list of one."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    made = EmbedRequest(model=model, inputs=texts, dimensions=dimensions, pooling=pooling)
    if normalize is not None:
        made.normalize = normalize
    return made


def load(
    model: str | LoadRequest,
    path: str | None,
    config: LoadConfig | None,
    keep_alive: float | None,
    pinned: bool,
    replace: bool,
) -> LoadRequest:
    """Returns the request to load; a whole LoadRequest in place of the name stands alone."""
    if isinstance(model, LoadRequest):
        if path is not None or config is not None or keep_alive is not None or pinned or replace:
            raise TypeError("a LoadRequest stands alone; set the other values in it instead")
        return model
    return LoadRequest(
        model=model,
        source=None if path is None else ModelSource(local=LocalSource(path=path)),
        config=config,
        keep_alive=duration(keep_alive),
        pinned=pinned,
        replace=replace,
    )


def unload(model: str, drain_timeout: float | None) -> UnloadRequest:
    """Returns the request to unload."""
    return UnloadRequest(model=model, drain_timeout=duration(drain_timeout))


def duration(seconds: float | None) -> Duration | None:
    """Returns seconds as the contract says them; None stays unset."""
    if seconds is None:
        return None
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made
