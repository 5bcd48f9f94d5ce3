"""The text of a model is divided into what it says, thinks and calls: at any split the same, nothing lost, in linear time."""

from __future__ import annotations

import json
import random
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferwire_server.engine.chat.family import family, names
from inferwire_server.engine.chat.markers import MAX_MARKER, Marker, Search, Watch
from inferwire_server.engine.chat.parser import (
    AnswerParser,
    CallArguments,
    CallBegin,
    CallEnd,
    Reasoning,
    Text,
)
from inferwire_server.engine.chat.response_template import ResponseTemplate
from inferwire_server.engine.chat.values import JSON, PYTHON, Dialect, ValueReader, cast, whole

from .chat_answers import ANSWERS, TOOLS, cut, events_of, parser_of, parts_of

CALLING = [name for name in names() if family(name).calls]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def spec(**fields: Any) -> dict[str, Any]:
    return {"start_anchor": "<a>", "fields": fields}


def read(
    template: dict[str, Any], *pieces: str, prompt: str = "", tools: Any = TOOLS
) -> list[dict[str, Any]]:
    parser = AnswerParser(ResponseTemplate.load(template), prompt=prompt, tools=tools)
    return parts_of(events_of(parser, pieces))


THINKING = {"open": "<think>", "close": "</think>"}
CALLS = {
    "open": "<call>",
    "close": "</call>",
    "content": "json",
    "transform": {"type": "function", "function": "{content}"},
}


class TestStreaming:
    """What is certain is told at once; what is not, as soon as it is."""

    def test_text_is_held_only_while_it_may_become_a_marker(self) -> None:
        """The marker may begin at any character, and a false beginning is let go where it ends."""
        parser = parser_of("hermes")
        assert [Text("a ")] != parser.feed("a ")
        assert [Text(" b")] == parser.feed("b<tool")
        assert [] == parser.feed("_")
        assert [Text("<tool_b")] == parser.feed("b<")
        assert [Text("<thin")] == parser.feed("thin<think>\n")
        assert [Reasoning("So")] == parser.feed("\nSo \n</")
        assert [Reasoning(" \n</so")] == parser.feed("so</think")
        assert [Text("c")] == parser.feed(">\n\nc\n<tool_call")
        assert [Text("\n<tool_call")] == parser.finish()

    def test_arguments_come_while_they_are_written(self) -> None:
        """From the opening brace on, character by character; a number when it is certain where it ends."""
        parser = parser_of("hermes")
        assert [] == parser.feed('<tool_call>\n{"name": "search", "arguments": ')
        assert [CallBegin(0, "search", None), CallArguments(0, "{")] == parser.feed("{")
        assert [CallArguments(0, '"query": "how')] == parser.feed('"query": "how')
        assert [CallArguments(0, " to")] == parser.feed(" to\\")
        assert [CallArguments(0, "\\n")] == parser.feed("n\\u00")
        assert [CallArguments(0, "\\u00e9")] == parser.feed("e9")
        assert [CallArguments(0, '", "limit": ')] == parser.feed('", "limit": 1')
        assert [] == parser.feed("2")
        assert [CallArguments(0, "12}"), CallEnd(0, is_complete=True)] == parser.feed("}")
        assert [] == parser.feed("}\n</tool_call>\n")
        assert [] == parser.finish()

    def test_a_text_argument_in_a_tag_comes_while_it_is_written(self) -> None:
        """A file's whole content may be in it; another type needs its end to be known."""
        parser = parser_of("qwen3-coder")
        assert [] == parser.feed("<tool_call>\n<function=search>\n<parameter=limit>"[:-1])
        began = [CallBegin(0, "search", None), CallArguments(0, '{"limit": ')]
        assert began == parser.feed(">\n1")
        assert [CallArguments(0, "12")] == parser.feed("2\n</parameter>\n")
        assert [CallArguments(0, ', "query": "a\\"')] == parser.feed('<parameter=query>\na"\n')
        assert [CallArguments(0, "\\n</b>")] == parser.feed("</b>\n</param")
        assert [CallArguments(0, '"')] == parser.feed("eter>")
        assert [CallArguments(0, "}"), CallEnd(0, is_complete=True)] == parser.feed(
            "\n</function>\n</tool_call>"
        )

    def test_it_says_whether_it_is_in_a_thought(self) -> None:
        """Who counts tokens of thoughts asks after each of them."""
        parser = parser_of("hermes", "<|im_start|>assistant\n<think>\n")
        assert parser.is_reasoning
        parser.feed("a</think>")
        assert not parser.is_reasoning

    def test_its_state_is_shown(self) -> None:
        """A parser tells where it is and what it holds."""
        parser = parser_of("hermes")
        parser.feed("a<tool")
        assert "<AnswerParser [content <Search [held '<tool' | found None]> | calls 0]>" == repr(parser)


class TestPrompt:
    """The prompt may have written the beginning of the answer."""

    @pytest.mark.parametrize(
        ("prompt", "text", "parts"),
        [
            ("<|im_start|>assistant\n<think>\n", "a\n</think>\nb", [{"reasoning": "a"}, {"text": "b"}]),
            ("<|im_start|>assistant\n<think>\nso", " a</think>b", [{"reasoning": " a"}, {"text": "b"}]),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "b", [{"text": "b"}]),
            ("<think>\n<|im_end|>\n<|im_start|>assistant\n", " b", [{"text": " b"}]),
            ("user: what is <think>?\nassistant:", " b</think>", [{"text": " b</think>"}]),
            ("bot:<think>\n", "a</think>b", [{"reasoning": "a"}, {"text": "b"}]),
            ("\n", "a</think>b", [{"text": "a</think>b"}]),
            ("<|im_start|>assistant\nDear", " me", [{"text": " me"}]),
        ],
    )
    def test_a_thought_that_the_prompt_has_opened(
        self, prompt: str, text: str, parts: list[dict[str, Any]]
    ) -> None:
        """Only the answer's own beginning counts, and nothing of it is told again."""
        assert parts == parts_of(events_of(parser_of("hermes", prompt), text))

    @pytest.mark.parametrize(
        "begun",
        [
            "<tool_call>",
            '<tool_call>\n{"name": "get_weather", "arg',
            '<tool_call>\n{"name": "get_weather", "arguments": ',
            '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n<tool_call>{"name": "get_weather", "arguments": {"ci',
        ],
    )
    def test_a_call_that_the_prompt_has_begun(self, begun: str) -> None:
        """It belongs to the answer, as the first of its calls; one that the prompt has ended does not."""
        call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
        whole_call = call if begun in call else begun[begun.rindex("<") :] + call[call.index('{"city') + 4 :]
        rest = whole_call[len(begun[begun.rindex("<tool_call>") :]) :]
        parts = parts_of(events_of(parser_of("hermes", f"<|im_start|>assistant\n{begun}"), rest))
        assert [{"call": "get_weather", "arguments": '{"city": "Rome"}', "is_complete": True}] == parts

    def test_a_call_that_the_prompt_has_begun_and_that_becomes_none(self) -> None:
        """What the prompt wrote is not the answer's text."""
        parser = parser_of("hermes", '<|im_start|>assistant\n<tool_call>{"name": ')
        assert [{"text": "oops"}] == parts_of(events_of(parser, "oops"))


class TestTools:
    """What is on offer decides what is a call, and of what type its arguments are."""

    @pytest.mark.parametrize("name", CALLING)
    def test_where_nothing_may_be_called_all_is_text(self, name: str) -> None:
        """Without tools what looks like a call is text, as far as it is no mere marker."""
        for answer in ANSWERS:
            if answer.family == name:
                parts = parts_of(events_of(parser_of(name, answer.prompt, tools=None), [answer.text]))
                assert not any("call" in part for part in parts)
                said = "".join(part.get("text", "") for part in parts)
                assert all(part.get("call", "") in said for part in answer.parts), answer.rule

    def test_a_schema_that_refers_to_itself_is_read_once(self) -> None:
        """Whoever sends the tools decides what their schemas look like."""
        schema = {"anyOf": [{"$ref": "#"}] * 50 + [{"type": "integer"}]}
        assert "7" == cast("7", schema, schema)

    @pytest.mark.parametrize(
        "schema", [7, [], {"properties": 7}, {"properties": {"a": {"type": 7, "anyOf": 7, "enum": 7}}}]
    )
    def test_a_schema_that_is_none_says_nothing(self, schema: Any) -> None:
        """The answer is read all the same."""
        text = "<function=f><parameter=a>\n7\n</parameter></function>"
        parts = parts_of(events_of(parser_of("qwen3-coder", tools={"f": schema}), text))
        assert [{"call": "f", "arguments": '{"a": "7"}', "is_complete": True}] == parts

    @pytest.mark.parametrize(
        ("text", "schema", "value"),
        [
            ("7", {"type": "integer"}, 7),
            ("-7.0", {"type": "integer"}, -7),
            ("007", {"type": "integer"}, 7),
            ("7.5", {"type": "integer"}, "7.5"),
            ("seven", {"type": "integer"}, "seven"),
            ("7", {"type": "number"}, 7),
            (" 7.50 ", {"type": "number"}, 7.5),
            ("1e3", {"type": "number"}, 1000.0),
            ("NaN", {"type": "number"}, "NaN"),
            ("True", {"type": "boolean"}, True),
            ("0", {"type": "boolean"}, False),
            ("yes", {"type": "boolean"}, "yes"),
            ("7", {"type": "string"}, "7"),
            ("null", {"type": "string"}, "null"),
            ("null", {"type": ["string", "null"]}, None),
            ("None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
            ("7", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 7),
            ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
            ("{'a': [True, None]}", {"type": "object"}, {"a": [True, None]}),
            ("[1, 2", {"type": "array"}, "[1, 2"),
            ('{"a": 1}', {"type": "array"}, '{"a": 1}'),
            ("7", {}, "7"),
            ("7", None, "7"),
            ("7", True, "7"),
            ("7", {"enum": ["7", 8]}, "7"),
            ("8", {"enum": ["7", 8]}, 8),
            ("red", {"$ref": "#/$defs/color"}, "red"),
            ("7", {"$ref": "#/$defs/number"}, 7),
            ("7", {"$ref": "#/$defs/nowhere"}, "7"),
            ("7", {"type": "integer", "nullable": True}, 7),
        ],
    )
    def test_bare_text_has_the_type_of_its_schema(self, text: str, schema: Any, value: Any) -> None:
        """What does not fit stays the text that it is."""
        root = {"$defs": {"color": {"enum": ["red"]}, "number": {"type": "number"}}}
        result = json.loads(cast(text, schema, root))
        assert (value, type(value)) == (result, type(result))


class TestTemplates:
    """A response template is read as Hugging Face Transformers reads it; what cannot be understood is refused."""

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            (r'{"name": "\ud83d", "arguments": {}}', None),
            (r'{"name": "now", "arguments": "{\"a\": \"\ud83d\"}"}', r'{"a": "\ud83d"}'),
            (r'{"name": "now", "arguments": {"\ud83d": "\ud83d"}}', r'{"\ud83d": "\ud83d"}'),
            ('{"name": ' + "9" * 5000 + ', "arguments": {}}', None),
            ('{"name": "now", "arguments": ' + "[" * 5000, None),
        ],
        ids=["name", "string", "arguments", "digits", "nesting"],
    )
    def test_what_no_message_could_hold(self, text: str, parts: str | None) -> None:
        """Half a character stays an escape or makes no call, and nothing is too long or too deep to be read."""
        call = f"<call>{text}</call>"
        expected = (
            {"text": call} if parts is None else {"call": "now", "arguments": parts, "is_complete": True}
        )
        assert [expected] == read(spec(tool_calls=CALLS), call) == read(spec(tool_calls=CALLS), *call)

    def test_two_regions_of_a_kind_are_joined(self) -> None:
        """By what the template says, between their texts alone."""
        template = spec(thinking=THINKING | {"repeats": True, "join": "; "}, content={})
        assert [{"reasoning": "a"}, {"text": "b"}, {"reasoning": "; c"}] == read(
            template, "<think>a</think>b<think>c</think>"
        )
        assert [{"reasoning": "a; c"}] == read(template, "<think> a </think> <think></think> <think>c")

    def test_white_space_stays_where_the_template_wants_it(self) -> None:
        """`strip` is a field's own."""
        kept = {"content_args": {"strip": False}}
        template = spec(thinking=THINKING | kept, content=kept)
        text = " a <think> b </think>\nc \n"
        assert [{"text": " a "}, {"reasoning": " b "}, {"text": "\nc \n"}] == read(template, *text)
        assert [{"text": " a"}, {"reasoning": "b"}, {"text": "c \n"}] == read(
            spec(thinking=THINKING, content={}), *text
        )

    def test_a_region_without_an_end_goes_on_to_the_end(self) -> None:
        """So a last field needs no marker behind it."""
        assert [{"reasoning": "a<think>b"}] == read(spec(thinking={"open": "<think>"}), "<think>a<think>b")

    def test_one_of_several_literals_opens_and_closes(self) -> None:
        """The longest that fits."""
        template = spec(thinking={"open": ["<t>", "<t>>"], "close": ["</t>", "</t>>"]})
        for opening, closing in (("<t>", "</t>"), ("<t>>", "</t>>"), ("<t>", "</t>>")):
            text = f"{opening}a{closing}b"
            assert [{"reasoning": "a"}, {"text": "b"}] == read(template, text) == read(template, *text)

    def test_the_later_of_two_markers_may_be_the_longer_one(self) -> None:
        """Where two begin at the same place it is not decided before the longer one has failed."""
        template = spec(thinking={"open": "<x>", "close": "</x>"}, content={"close": "<x><end>"})
        assert [{"text": "ab"}] == read(template, *"a<x><end>b")
        assert [{"text": "a"}, {"reasoning": "<endb"}] == read(template, *"a<x><endb")

    def test_calls_in_a_list_with_keys_of_their_own(self) -> None:
        """The transform says where a call's parts are."""
        template = spec(
            tool_calls={
                "open": "<call>",
                "close": "</call>",
                "content": "json",
                "transform_each": True,
                "transform": {"id": "{n}", "function": {"name": "{fn.name}", "arguments": "{fn.args}"}},
            }
        )
        text = '<call>[{"n": 1, "fn": {"name": "a", "args": {"x": [1]}}}, {"fn": {"args": {}, "name": "b"}}]</call>.'
        expected = [
            {"call": "a", "id": "1", "arguments": '{"x": [1]}', "is_complete": True},
            {"call": "b", "arguments": "{}", "is_complete": True},
            {"text": "."},
        ]
        assert expected == read(template, text) == read(template, *text)

    def test_a_value_that_reads_as_json_is_json(self) -> None:
        """Where the template says so; what does not is text of the schema's type."""
        template = spec(
            tool_calls={
                "open_pattern": r"<call (?P<name>\w+)>",
                "close": "</call>",
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<(?P<key>\w+)>\s*(?P<value>.*?)\s*</>",
                    "value_parser": {"name": "json", "args": {"allow_non_json": True}},
                },
                "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
            }
        )
        text = '<call search><query> 5 </><tags>["a"]</><limit>"7"</><x>a b</></call>'
        arguments = '{"query": 5, "tags": ["a"], "limit": 7, "x": "a b"}'
        assert [{"call": "search", "arguments": arguments, "is_complete": True}] == read(template, *text)

    def test_what_was_looked_at_beyond_a_value_is_read_again(self) -> None:
        """It may end the call, and go on with text."""
        template = spec(
            tool_calls={
                "open_pattern": "<(?P<name>now)>",
                "close": "/>",
                "content": "xml-inline",
                "content_args": {"tag_pattern": r"(?P<key>\w)=(?P<value>.*?);(?=.*!)"},
                "transform": {"name": "{name}", "arguments": "{content}"},
            }
        )
        text = "<now> a=1;2;/>text! and more"
        parts = [
            {"call": "now", "arguments": '{"a": "1"', "is_complete": False},
            {"text": "2;/>text! and more"},
        ]
        assert parts == read(template, text) == read(template, *text)
        parts = [{"call": "now", "arguments": '{"a": "1"}', "is_complete": True}, {"text": "text! and more"}]
        text = text.replace("2;", "")
        assert parts == read(template, text) == read(template, *text)

    @pytest.mark.parametrize(
        ("template", "problem"),
        [
            ({"fields": {"content": {}}}, "start_anchor"),
            ({"start_anchor": "", "fields": {"content": {}}}, "start_anchor"),
            ({"start_anchor": "a"}, "fields"),
            (spec(content={}) | {"version": 2}, "version 2"),
            (spec(content={}) | {"fuel": 1}, "unknown keys: fuel"),
            (spec(content={"fuel": 1}), "unknown keys: fuel"),
            (spec(mood={"open": "<m>"}), "'mood'"),
            (spec(content={"content": "json"}), "'json'"),
            (spec(content=7), "object"),
            (spec(thinking={}), "without a marker"),
            (spec(content={"open": "a", "open_pattern": "b"}), "both"),
            (spec(thinking={"open": []}), "open"),
            (spec(thinking={"open": ["a", ""]}), "open"),
            (spec(tool_calls=CALLS | {"content": "kv-lines"}), "'kv-lines'"),
            (spec(tool_calls=CALLS | {"transform": {"name": "{name}"}}), "name"),
            (spec(tool_calls=CALLS | {"transform": {"function": "call {content}"}}), "placeholder"),
            (spec(tool_calls=CALLS | {"transform": {"function": {"name": "{n}", "arguments": "{content}"}}}), "'{n}'"),
            (spec(tool_calls={key: value for key, value in CALLS.items() if key != "transform"}), "transform"),
            (spec(tool_calls={key: value for key, value in CALLS.items() if key != "open"}), "opens"),
            (spec(thinking={"open_pattern": "(?!a)b"}), r"\(\?!"),
            (spec(thinking={"open_pattern": "(?<=a)b"}), "group"),
            (spec(thinking={"open_pattern": r"(a)\1"}), "1"),
            (spec(thinking={"open_pattern": "(?=a)b"}), "lookahead"),
            (spec(thinking={"open_pattern": "(?:a|b"}), "end"),
            (spec(thinking={"open_pattern": "a)"}), "parenthesis"),
            (spec(thinking={"open_pattern": "a*"}), "empty"),
            (spec(thinking={"open_pattern": "*a"}), r"\*a"),
            (spec(thinking={"open_pattern": "a**"}), "quantifier"),
            (spec(thinking={"open_pattern": "a{3,2}b"}), "quantifier"),
            (spec(thinking={"open_pattern": "(?:a{99}){99}"}), "large"),
            (spec(thinking={"open_pattern": "[a"}), r"\[a"),
            (spec(thinking={"open_pattern": r"a\b"}), "b"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_understood_is_refused(self, template: dict[str, Any], problem: str) -> None:
        """A template comes from a file; half of it understood would be worse than none."""
        with pytest.raises(ValueError, match=problem):
            ResponseTemplate.load(template)


PATTERNS = [
    "ab",
    "a|ab|b",
    "ab*c",
    "ab*?c",
    "a+b?",
    "a{2,3}b",
    "(?:ab|a)(?:c|bcd)?",
    "(?P<x>a+)(?P<y>b*)",
    "(?P<x>a+?)(?P<y>b*?)c",
    "(?P<x>(?P<y>a)b)*c",
    "[^a]b|c",
    r"\s*a",
    ".b",
    ".*?c",
    "a.*c",
    "^b|c",
    "a(?=b)",
    "a(?:b|(?=c))",
    "b$|ab",
    "(?:a|(?:ab))(?:b|$)",
    r"[\w-]+\[",
]


class TestMarkers:
    """The small language of patterns means what `re` means by it."""

    @pytest.mark.parametrize("pattern", PATTERNS)
    @settings(deadline=None)
    @given(text=st.text("abc [\n", max_size=12), data=st.data())
    def test_the_first_match_is_that_of_re(self, pattern: str, text: str, data: st.DataObject) -> None:
        """The same place, the same text, the same groups, however the text was cut."""
        places = data.draw(st.lists(st.integers(0, 12), max_size=4))
        search = Search(Watch.of([Marker.pattern(pattern)]), at_start=True)
        for piece in cut(text, places):
            search.push(piece, 0)
        search.finish()
        match, found = re.search(pattern, text, re.DOTALL), search.found
        assert (match is None) == (found is None)
        if match is not None and found is not None:
            groups = {name: group for name, group in match.groupdict().items() if group is not None}
            assert (text[: match.start()], match[0], groups) == (search.take(), found.text, found.captures)
            # What was looked at follows; what comes after that was not read.
            assert text[match.end() :].startswith(found.rest)

    @settings(deadline=None)
    @given(
        patterns=st.lists(st.sampled_from([p for p in PATTERNS if "^" not in p]), min_size=1, max_size=3),
        text=st.text("abc [\n", max_size=12),
        places=st.lists(st.integers(0, 12), max_size=4),
    )
    def test_of_several_the_leftmost_counts_then_the_longest(
        self, patterns: list[str], text: str, places: list[int]
    ) -> None:
        """And then the first that was named."""
        search = Search(Watch.of([Marker.pattern(pattern) for pattern in patterns]))
        for piece in cut(text, places):
            search.push(piece, 0)
        search.finish()
        matches = [re.search(pattern, text, re.DOTALL) for pattern in patterns]
        keys = [(m.start(), m.start() - m.end(), index) for index, m in enumerate(matches) if m]
        found = search.found and (len(search.take()), -len(search.found.text), search.found.index)
        assert min(keys, default=None) == found

    def test_a_marker_has_an_end(self) -> None:
        """What goes on for ever is no marker: text is not held without bound."""
        parser = parser_of("qwen3-coder")
        held = "<function=" + "x" * MAX_MARKER
        told = "".join(event.text for event in parser.feed(held + "x") if isinstance(event, Text))
        assert held + "x" == told


class TestValues:
    """Whatever a value was written in, what comes out is JSON."""

    @settings(deadline=None)
    @given(value=JSON_VALUES, ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]))
    def test_json_comes_out_as_it_is(self, value: Any, ascii: bool, indent: int | None) -> None:
        """Character for character, white space too."""
        text = json.dumps(value, ensure_ascii=ascii, indent=indent)
        assert text.replace("\x7f", "\\u007f") == (whole(text) or "").replace("\x7f", "\\u007f")

    @settings(deadline=None)
    @given(value=JSON_VALUES)
    def test_python_comes_out_as_json(self, value: Any) -> None:
        """What `repr` writes means the same."""
        assert value == json.loads(whole(repr(value), PYTHON) or "null")

    @settings(deadline=None)
    @given(value=JSON_VALUES.filter(lambda value: "\u27eb" not in repr(value)))
    def test_bare_keys_and_delimiters_come_out_as_json(self, value: Any) -> None:
        """The delimiter is the only thing that a string cannot hold."""
        assert value == json.loads(
            whole(bare(value), Dialect((("<|\u27ea", "|\u27eb"),), has_bare_keys=True)) or "null"
        )

    @settings(deadline=None)
    @given(value=JSON_VALUES, places=st.lists(st.integers(0, 60), max_size=4))
    def test_what_is_given_is_always_the_beginning_of_json(self, value: Any, places: list[int]) -> None:
        """It can be completed at any moment, whatever comes next."""
        for dialect, text in ((JSON, json.dumps(value)), (PYTHON, repr(value))):
            pieces: list[str] = []
            reader = ValueReader(dialect, pieces.append, lambda: None)
            for piece in cut(text + "\n", places):
                reader.read(piece, 0)
                given = "".join(pieces)
                assert not given.strip() or json.loads(completed(given)) is not NotImplemented

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            (r'"\d\'\q\u12G"', "\\d'\\q\\u12G"),
            ('"a\nb\tc"', "a\nb\tc"),
            ('{"a": 1,}', {"a": 1}),
            ("[1, 2 , ]", [1, 2]),
            ("[" * 128 + "]" * 128, None),
            ("[" * 129 + "]" * 129, NotImplemented),
            ("{a: 1}", NotImplemented),
            ("{'a': 1}", NotImplemented),
            ("[1 2]", NotImplemented),
            ("[,]", NotImplemented),
            ("01", NotImplemented),
            ("+1", NotImplemented),
            ("True", NotImplemented),
            ("NaN", NotImplemented),
            ('{"a" 1}', NotImplemented),
            ('{"a": 1}}', NotImplemented),
            ('"a', NotImplemented),
        ],
    )
    def test_json_of_models(self, text: str, value: Any) -> None:
        """Common slips are mended; what is no value is none."""
        result = whole(text)
        if value is NotImplemented:
            assert result is None
        elif value is not None:
            assert value == json.loads(result or "")

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("'a\"\\'b'", "a\"'b"),
            (r"'\x41\u00e9\U0001F600\z\0'", "Aé😀\\z\0"),
            (r"'\U0000d83d \U99999999'", "\ud83d \\U99999999"),
            ("{'a': True, \"b\": [None, .5, 1_000, +2, 1.]}", {"a": True, "b": [None, 0.5, 1000, 2, 1.0]}),
            ("true", True),
        ],
    )
    def test_python_of_models(self, text: str, value: Any) -> None:
        """Literals as Python knows them, and JSON's words too."""
        result = whole(text, PYTHON) or "null"
        assert value == json.loads(result)
        result.encode()


def bare(value: Any) -> str:
    if isinstance(value, str):
        return bare_string(value)
    if isinstance(value, list):
        return f"[{','.join(map(bare, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key_of(key)}:{bare(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value)


def bare_string(text: str) -> str:
    return f"<|\u27ea{text}|\u27eb"


def key_of(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z_]+", key) else bare_string(key)


def completed(text: str) -> str:
    """A JSON text from the beginning of one: strings and brackets closed, and a value where one is missing."""
    closing: list[str] = []
    in_string = is_escaped = False
    for character in text:
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            in_string = True
        elif character in "{[":
            closing.append("}" if character == "{" else "]")
        elif character in "}]":
            closing.pop()
    text += '"' if in_string else ""
    text = re.sub(r",\s*$", "", text)
    for ending in ("", "null", ":null"):
        attempt = text + ending + "".join(reversed(closing))
        try:
            json.loads(attempt)
        except ValueError:
            continue
        return attempt
    raise AssertionError(f"{text!r} is not the beginning of JSON")


def fragments(name: str) -> list[str]:
    """What a text of this family may be made of: its markers, pieces of its answers, and what is dear to a parser."""
    pieces = sorted(family(name).tokens)
    for answer in ANSWERS:
        if answer.family == name:
            pieces += re.findall(r"<[^<>]*>|\[[A-Z_]+\]|[\w.]+|[^\w\s]|\s+", answer.text)
    return sorted(
        {*pieces, '{"name": "now", "arguments": {', '"a": 1', "}}", '"', "\\", "{", "[", "<", " ", "\n"}
    )


@st.composite
def garbled(draw: st.DrawFn) -> tuple[str, str, list[int]]:
    """A family, a text that is nearly one of its answers, and where to cut it."""
    name = draw(st.sampled_from(names()))
    known = [answer.text for answer in ANSWERS if answer.family == name]
    piece = st.sampled_from(fragments(name)) | st.sampled_from(known) | st.text(max_size=4)
    text = "".join(draw(st.lists(piece, max_size=14)))
    if draw(st.booleans()) and text:
        begin, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        text = text[:begin] + text[end:]
    return name, text, draw(st.lists(st.integers(0, max(1, len(text))), max_size=8))


class TestAnyText:
    """What holds for every text whatsoever."""

    @settings(deadline=None, max_examples=400)
    @given(case=garbled())
    def test_it_is_divided_the_same_at_any_split(self, case: tuple[str, str, list[int]]) -> None:
        """In two pieces, in many or character by character; what is called is in order, what is complete is an object."""
        name, text, places = case
        parts = parts_of(events_of(parser_of(name), [text]))
        assert parts == parts_of(events_of(parser_of(name), cut(text, places)))
        assert parts == parts_of(events_of(parser_of(name), text))
        for part in parts:
            if part.get("is_complete"):
                assert isinstance(json.loads(part["arguments"]), dict)
            elif "call" in part:
                assert isinstance(json.loads(completed(part["arguments"])), dict)

    @settings(deadline=None, max_examples=400)
    @given(data=st.data())
    def test_no_word_is_lost(self, data: st.DataObject) -> None:
        """Between markers in any disorder, each word arrives once and in its place: as text, as a thought or in a call."""
        name = data.draw(st.sampled_from(names()))
        markers = data.draw(
            st.lists(st.sampled_from([*sorted(family(name).tokens), " ", "\n", "{", '"', "<"]), max_size=20)
        )
        words = [f"¶{number}" for number in range(len(markers))]
        text = "".join(part for pair in zip(markers, words, strict=True) for part in pair)
        parts = parts_of(events_of(parser_of(name), data.draw(st.sampled_from([[text], list(text)]))))
        told = " ".join(str(value) for part in parts for value in part.values())
        assert words == re.findall(r"¶\d+", told)

    @settings(deadline=None)
    @given(text=st.text())
    def test_text_without_markers_is_that_text(self, text: str) -> None:
        """Plain answers are not changed by a single character, in any family that has markers of its own."""
        for name in ("plain", "hermes", "qwen3-coder", "gemma-4", "kimi-k2"):
            assert text == "".join(part["text"] for part in parts_of(events_of(parser_of(name), [text])))


class TestLinear:
    """Twice the text is twice the work, whatever the text is: models repeat themselves without end."""

    @pytest.mark.parametrize(
        "unit",
        [
            "<", "{", "[", " ", "\n<", '"', "\\", "`", "<t", "<|", "[TOOL_CALLS]", "<tool_call>", "<function=", "<function=a>x",
            "<tool_call>{", '<tool_call>{"a":"', '<tool_call>{"name":"now","arguments":{}}</tool_call>\n', '{"name":"now"}; ',
            "<tool_call>\n<function=now>\n</function>", "<tool_call>\n<function=now>\n<parameter=a>\n", "<|channel|>",
            "<think></think>", "<think>", "call:", "<\uff5ctool\u2581call\u2581begin\uff5c>", "to=functions.a", "now(", "[now()]",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "name", ["hermes", "qwen3-coder", "llama3-json", "pythonic", "gpt-oss", "deepseek-r1"]
    )
    def test_the_work_grows_with_the_text(self, name: str, unit: str) -> None:
        """Counted in lines of code that run, for the text as a whole and for its single characters."""
        for is_split in (False, True):
            small, large = (
                count_lines(name, unit * (size // len(unit)), is_split=is_split) for size in (500, 2000)
            )
            assert large <= 4.6 * small + 1000

    @pytest.mark.parametrize("prefix", ["", '<tool_call>{"name": "now", "arguments": {"a": "', "<think>"])
    def test_a_long_answer(self, prefix: str) -> None:
        """A million characters in pieces of a few: what is held never grows with what was read."""
        parser = parser_of("hermes")
        text = "\\n<b> " * 170_000
        told = 0
        for piece in [prefix, *cut(text, range(0, len(text), 7))]:
            told += sum(
                len(event.text) for event in parser.feed(piece) if not isinstance(event, CallBegin | CallEnd)
            )
        # The last character may belong to a marker that follows.
        assert told >= len(text) - 1

    def test_many_calls(self) -> None:
        """Ten thousand of them, in one piece."""
        call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        parts = parts_of(events_of(parser_of("hermes"), [call * 10_000]))
        assert [{"call": "now", "arguments": "{}", "is_complete": True}] * 10_000 == parts


def count_lines(name: str, text: str, *, is_split: bool) -> int:
    parser = parser_of(name)
    num_lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal num_lines
        num_lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for piece in text if is_split else [text]:
            parser.feed(piece)
        parser.finish()
    finally:
        sys.settrace(before)
    return num_lines


def test_random_cuts_of_long_answers() -> None:
    """Many answers one after the other, cut anywhere: as if each had come alone."""
    chance = random.Random(7)
    for name in ("hermes", "qwen3-coder", "gpt-oss", "glm-4.5"):
        texts = [
            answer.text for answer in ANSWERS if answer.family == name and "breaks off" not in answer.rule
        ]
        text = "\n".join(chance.choices(texts, k=40))
        expected = parts_of(events_of(parser_of(name), [text]))
        for _ in range(10):
            places = chance.sample(range(len(text)), k=chance.randint(1, 400))
            assert expected == parts_of(events_of(parser_of(name), cut(text, places)))
