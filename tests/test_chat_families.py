"""Every format of the field is data: it is found in a chat template, and its answers are read as its models mean them."""

from __future__ import annotations

import json

import pytest

from inferwire_server.engine.chat.family import detect, family, names

from .chat_answers import ANSWERS, CHAT_TEMPLATES, Answer, cut, events_of, parser_of, parts_of

each_family = pytest.mark.parametrize("name", names())


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_an_answer_is_read_as_it_is_meant(answer: Answer) -> None:
    """Text, thoughts and calls come out as they stand in the data, whole or in pieces of any size."""
    sizes = [1, 2, 3, 5, 7, len(answer.text)]
    for size in sizes:
        parser = parser_of(answer.family, answer.prompt)
        pieces = cut(answer.text, range(0, len(answer.text), size))
        assert answer.parts == parts_of(events_of(parser, pieces)), f"pieces of {size}"


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_arguments_of_a_whole_call_are_an_object(answer: Answer) -> None:
    """Whatever the format writes, a complete call's arguments are one JSON object."""
    for part in answer.parts:
        if part.get("is_complete"):
            assert isinstance(json.loads(part["arguments"]), dict)


@each_family
def test_a_family_is_found_in_its_chat_template(name: str) -> None:
    """A few words of a template tell the family; none of the others claims them but those that claim what is left."""
    template = CHAT_TEMPLATES[name]
    claimed = [other for other in names() if family(other).fits(template) and not family(other).is_fallback]
    assert name == detect(template)
    assert claimed == ([] if family(name).is_fallback else [name])


def test_a_template_that_says_nothing_is_plain() -> None:
    """Who does not know a format does not guess one."""
    assert "plain" == detect("{% for message in messages %}{{ message.content }}{% endfor %}")


@each_family
def test_a_family_names_the_markers_that_it_reads_or_writes(name: str) -> None:
    """The engine shows the parser the control tokens that the family names: each is in a marker or in what it writes."""
    template, syntax = family(name).response_template, family(name).calls
    markers = [
        marker for field in (*template.fields, template.outside) for marker in (field.open, field.close)
    ]
    shapes = [str(field.calls) for field in template.fields]
    shown = "".join([str(syntax), *(marker.source for marker in markers if marker), *shapes]).replace(
        "\\", ""
    )
    assert [] == [token for token in family(name).tokens if token not in shown]


def test_an_unknown_family_is_refused() -> None:
    """The words name those that there are."""
    with pytest.raises(ValueError, match=r"no family 'nobody'.*hermes"):
        family("nobody")


def test_every_family_has_answers() -> None:
    """A format without a test is not known to work."""
    assert {answer.family for answer in ANSWERS} == set(names())
