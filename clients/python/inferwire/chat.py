"""The turns of a conversation as messages of the contract, and a message's text. Imports messages only."""

from __future__ import annotations

from inferwire.v1.inference_pb2 import Message, Part, Role, ToolResult


def system(text: str) -> Message:
    """Returns the operator's turn, which stands first in a chat."""
    return Message(role=Role.ROLE_SYSTEM, parts=[Part(text=text)])


def user(text: str) -> Message:
    """Returns a person's turn."""
    return Message(role=Role.ROLE_USER, parts=[Part(text=text)])


def assistant(text: str) -> Message:
    """Returns a turn of the model. An answer's own `message` says more (thoughts, tool calls): prefer it."""
    return Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=text)])


def tool_result(call_id: str, text: str, *, is_error: bool = False) -> Message:
    """Returns the turn that answers the tool call `call_id`."""
    result = ToolResult(call_id=call_id, text=text, is_error=is_error)
    return Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)])


def text_of(message: Message) -> str:
    """Returns the message's text parts, joined; thoughts and tool calls are not text."""
    return "".join(part.text for part in message.parts)
