"""How one model chats: its template writes the prompt, its family says how the answer is read and how calls are written.

What a request asks for beside its messages (tools, thoughts, the answer's form) becomes an `AnswerReader` here, or a refusal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.struct_pb2 import Value

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors

from ..runner import Constraint, Vocabulary
from .call_grammar import call_grammar, text_without
from .family import Family
from .parser import AnswerParser
from .reader import AnswerReader, CallConstraint
from .template import ChatTemplate

_ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_EFFORTS = {
    pb.REASONING_EFFORT_MINIMAL: "minimal",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
# A name that no template writes of its own accord.
_PROBE = "probe_q7x"


class Grammars(Protocol):
    """What compiles the forms of answers."""

    def is_special(self, token: int) -> bool:
        """Whether a grammar speaks of a token by its id."""

    def compile(self, response_format: pb.ResponseFormat) -> Constraint:
        """Returns the constraint of a response format. Raises errors.GrammarInvalid, errors.GrammarTooComplex."""

    def compile_lark(self, text: str, field: str) -> CallConstraint:
        """Returns the constraint of a grammar that stands for the request's `field`. Raises as `compile`."""


class ChatModel:
    """A template and a family over one vocabulary."""

    def __init__(
        self,
        *,
        model: str,
        template: ChatTemplate,
        family: Family,
        vocabulary: Vocabulary,
        grammars: Grammars,
    ) -> None:
        self._model = model
        self._template = template
        self._family = family
        self._vocabulary = vocabulary
        self._grammars = grammars
        tokens = {text: self._token(text) for text in family.tokens}
        self._special_tokens = {
            text: token for text, token in tokens.items() if token is not None and grammars.is_special(token)
        }
        # Control tokens have no text of their own; the parser is shown how they are written.
        self._shown_tokens = [token for token in self._special_tokens.values() if not vocabulary.piece(token)]
        self._call_token = self._token(family.call_marker) if family.call_marker else None
        self._thought_token = self._token(family.thought.begin.strip()) if family.thought else None
        self._shows_tools = family.calls is not None and self._is_shown(_PROBE)

    def __repr__(self) -> str:
        return f"<ChatModel {self._model} [family {self._family.name}]>"

    def describe(self, capabilities: models_pb2.Capabilities) -> None:
        """Says what the template and the family can do."""
        capabilities.chat = True
        capabilities.tools = self._shows_tools
        capabilities.reasoning = self._family.thought is not None

    def prompt(self, chat: pb.Chat) -> str:
        """Returns a conversation as the model reads it, a thought opened or closed as was asked for.

        Raises errors.TemplateRejected when the template refuses it, errors.UnsupportedByBackend for what the family cannot do.
        """
        self._check(chat)
        reasoning, thought = chat.reasoning, self._family.thought
        arguments: dict[str, Any] = plain(Value(struct_value=chat.template_arguments))
        is_off = self._is_off(reasoning)
        if reasoning.HasField("enabled") or is_off:
            # The names that templates of the field know.
            arguments |= {"enable_thinking": not is_off, "thinking": not is_off}
        if reasoning.effort:
            arguments["reasoning_effort"] = _EFFORTS[reasoning.effort]
        text = self._template.render(
            template_messages(chat), tools=_template_tools(chat), arguments=arguments
        )
        if thought is not None and (reasoning.enabled or is_off):
            is_open = AnswerParser(self._family.response_template, prompt=text).is_reasoning
            if is_open and is_off:
                text += thought.end
            elif not is_open and not is_off:
                text += thought.begin
        return text

    def reader(
        self, request: pb.CompleteRequest, prompt: str, *, seed: int
    ) -> tuple[AnswerReader, tuple[int, ...]]:
        """Returns what reads the answer to a prompt, and the tokens that are never drawn.

        Raises errors.GrammarInvalid and such for forms that cannot be enforced.
        """
        chat, family = request.chat, self._family
        tools = {tool.name: json.loads(tool.parameters) if tool.parameters else {} for tool in chat.tools}
        choice = chat.tool_choice
        is_auto = choice.WhichOneof("choice") is None or choice.mode == pb.TOOL_CHOICE_MODE_AUTO
        is_none = choice.mode == pb.TOOL_CHOICE_MODE_NONE
        must_call = choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED or bool(choice.name)
        is_parallel = not chat.HasField("parallel_tool_calls") or chat.parallel_tool_calls
        forbidden: list[int | None] = []
        answer: Constraint | None = None
        forms: list[CallConstraint] = []
        if must_call:
            chosen = {choice.name: tools[choice.name]} if choice.name else tools
            answer = self._call_form(chosen, is_parallel=is_parallel)
        elif request.HasField("response_format"):
            answer = self._grammars.compile(request.response_format)
        if tools and is_auto:
            # Where nothing stands around several calls, each has its own form, and there may be text between them.
            is_wrapped = family.calls is not None and bool(family.calls.begin)
            forms.append(self._call_form(tools, is_parallel=is_parallel and is_wrapped))
            if is_wrapped:
                # Where the parser sees a call begin, what stands around all of them was written before.
                forms.append(self._call_form(tools, is_parallel=False, is_inner=True))
            if answer is not None and self._call_token is None:
                raise errors.UnsupportedByBackend(
                    "the model cannot choose between a call and an answer of a given form",
                    metadata={"model": self._model, "backend": "local"},
                    violations=[
                        ("response_format", "not beside tools that may be called; set chat.tool_choice")
                    ],
                )
        elif tools and is_none:
            forbidden.append(self._call_token)
            if (
                answer is None
                and self._call_token is None
                and family.call_marker
                and not self._special_tokens
            ):
                answer = self._grammars.compile_lark(text_without(family.call_marker), "chat.tool_choice")
        if self._is_off(chat.reasoning):
            forbidden.append(self._thought_token)
        parser = AnswerParser(
            family.response_template, prompt=prompt, tools=tools if tools and not is_none else None
        )
        thought_end: Sequence[int] = ()
        if family.thought is not None:
            thought_end = self._tokenize(family.thought.end)
        reader = AnswerReader(
            parser,
            tokenize=self._tokenize,
            new_call_id=lambda index: _call_id(prompt, seed, index),
            num_vocab=self._vocabulary.num_tokens,
            shown_tokens=self._shown_tokens,
            end_tokens=self._vocabulary.end_tokens(),
            answer=answer,
            calls=forms,
            call_token=self._call_token,
            is_strict=family.is_strict,
            is_parallel=is_parallel,
            thought_token=None if self._is_off(chat.reasoning) else self._thought_token,
            thought_end=thought_end,
            max_thought_tokens=chat.reasoning.budget_tokens
            if chat.reasoning.HasField("budget_tokens")
            else None,
        )
        return reader, tuple(token for token in forbidden if token is not None)

    def _check(self, chat: pb.Chat) -> None:
        """Refuses what this model cannot do. Capabilities were looked at before; these are finer."""
        reasoning = chat.reasoning
        if reasoning.effort and not self._template.knows("reasoning_effort"):
            raise errors.UnsupportedByBackend(
                "the model's template knows no levels of effort",
                metadata={"model": self._model, "backend": "local"},
                violations=[
                    ("chat.reasoning.effort", "is not known to this model; set enabled or budget_tokens")
                ],
            )

    @staticmethod
    def _is_off(reasoning: pb.ReasoningOptions) -> bool:
        is_disabled = reasoning.HasField("enabled") and not reasoning.enabled
        return is_disabled or (reasoning.HasField("budget_tokens") and reasoning.budget_tokens == 0)

    def _call_form(
        self, tools: Mapping[str, Any], *, is_parallel: bool, is_inner: bool = False
    ) -> CallConstraint:
        try:
            grammar = call_grammar(
                self._family,
                tools,
                is_parallel=is_parallel,
                is_inner=is_inner,
                special_tokens=self._special_tokens,
            )
        except ValueError as error:
            raise errors.GrammarInvalid(
                "a tool's parameters cannot be enforced", violations=[("chat.tools", str(error))]
            ) from error
        except RecursionError as error:
            raise errors.GrammarTooComplex(
                "a tool's parameters exceed the limits on size or depth",
                violations=[("chat.tools", "is too complex")],
            ) from error
        return self._grammars.compile_lark(grammar, "chat.tools")

    def _is_shown(self, name: str) -> bool:
        """Whether the template tells the model of a tool."""
        tool = {
            "type": "function",
            "function": {"name": name, "description": name, "parameters": _NO_PARAMETERS},
        }
        try:
            return name in self._template.render([{"role": "user", "content": "Hello"}], tools=[tool])
        except errors.TemplateRejected:
            return False

    def _tokenize(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True) if text else []

    def _token(self, text: str) -> int | None:
        """Returns the one token that a text is, None when it is several."""
        tokens = self._tokenize(text)
        return tokens[0] if len(tokens) == 1 else None


_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


def template_messages(chat: pb.Chat) -> list[dict[str, Any]]:
    """Returns a conversation as chat templates expect it: OpenAI's shape, arguments of calls as objects."""
    messages = []
    names: dict[str, str] = {}
    for message in chat.messages:
        entry: dict[str, Any] = {"role": _ROLES[message.role]}
        entry["content"] = "".join(part.text for part in message.parts if part.WhichOneof("part") == "text")
        thoughts = [part.reasoning.text for part in message.parts if part.WhichOneof("part") == "reasoning"]
        if thoughts:
            entry["reasoning_content"] = "".join(thoughts)
        calls = [part.tool_call for part in message.parts if part.WhichOneof("part") == "tool_call"]
        if calls:
            names |= {call.id: call.name for call in calls}
            entry["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")},
                }
                for call in calls
            ]
        results = [part.tool_result for part in message.parts if part.WhichOneof("part") == "tool_result"]
        if results:
            # A template sees one result per tool message; some want the tool's name.
            messages += [
                {
                    **entry,
                    "content": result.text,
                    "tool_call_id": result.call_id,
                    "name": names.get(result.call_id, ""),
                }
                for result in results
            ]
        else:
            messages.append(entry)
    return messages


def plain(value: Value) -> Any:
    """Returns a Struct's value as Python's, with whole numbers as int, so that a template prints 5 and not 5.0."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {key: plain(item) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None


def _template_tools(chat: pb.Chat) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters) if tool.parameters else dict(_NO_PARAMETERS),
            },
        }
        for tool in chat.tools
    ]


def _call_id(prompt: str, seed: int, index: int) -> str:
    """Returns an id that no other call of a conversation has, and that the same request gets again."""
    digest = hashlib.sha256(f"{seed} {index} {prompt}".encode("utf-8", "surrogatepass"))
    return f"call_{digest.hexdigest()[:24]}"
