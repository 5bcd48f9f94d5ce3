"""Chat templates are untrusted code: they may do what templates of the field do, and nothing more."""

from __future__ import annotations

import re
import resource
import time
from typing import Any

import pytest

from inferwire_server import errors
from inferwire_server.engine.chat.template import ChatTemplate
from tests.hostile import templates

CHAT = [{"role": "user", "content": "Hi"}]
MAX_BYTES = 4 << 20

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    max_bytes = options.pop("max_bytes", MAX_BYTES)
    template = ChatTemplate(source, bos="<s>", eos="</s>", max_bytes=max_bytes)
    return template.render(CHAT if messages is None else messages, **options)


class TestFeatures:
    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hi</s>"),
            ("{{ messages[0]['content'] ~ 1 ~ true }}", "Hi1True"),
            ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
            ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
            ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
            ("{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{% if not loop.last %},{% endif %}{% endfor %}",
             "1/3,2/3,3/3"),
            ("{% for i in [1, 2, 3] if i != 2 %}{{ i }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}", "13;31;"),
            ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
            ("{% for n in [[1, [2, 3]]] recursive %}{{ n[0] }}{{ loop(n[1:]) if n[1] is defined }}{% endfor %}", "12"),
            ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "a1b2"),
            ("{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
            ("{{ {'a': '<b> & \\'é\\''} | tojson }}", '{"a": "<b> & \'é\'"}'),
            ("{{ {'b': [1, 2.5], 'a': none} | tojson(indent=2) }}",
             '{\n  "b": [\n    1,\n    2.5\n  ],\n  "a": null\n}'),
            ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
            ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
            ("{% generation %}answer{% endgeneration %}!", "answer!"),
            ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
            ("{% macro say(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ say('a') }}{{ say('b', y='?') }}", "a!b?"),
            ("{% set x %}a{{ 1 }}{% endset %}[{{ x }}]", "[a1]"),
            ("{% set a, b = 1, 2 %}{{ b }}{{ a }}", "21"),
            ("{{ tools is none }}{{ tools is defined }}{{ nothing.at.all is defined }}{{ nothing }}", "TrueTrueFalse"),
            ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
            ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
            ("{{ (messages + messages)[1:] | length }}", "1"),
            ("{{ 'a-b'.split('-') | join('+') }}{{ ' x '.strip() }}{{ 'ab'.replace('a', 'c') }}", "a+bxcb"),
            ("{{ '-'.join(['a', 'b']) }}{{ '{} {x}'.format(1, x=2) }}", "a-b1 2"),
            ("{{ 'ab' * 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ [0] * 2 }}{{ 'abc'[::-1] }}", "abab38[0, 0]cba"),
            ("{{ 'a\nb' | indent(2) }}|{{ 'a\n\nb' | indent(2, true) }}", "a\n  b|  a\n\n  b"),
            ("{{ 'a\n\nb' | indent('> ', blank=true) }}", "a\n> \n> b"),
            ("{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 1 | string }}", "a-b-a-bX1"),
            ("{{ 'a' | upper | default('z') }}{{ '' | default('z', true) }}{{ 3.7 | int }}{{ '5' | int + 1 }}", "Az36"),
            ("{{ messages[0].get('tool_calls', 'no') }}{{ 'role' in messages[0] }}", "noTrue"),
            ("{% filter upper %}ab{% endfilter %}", "AB"),
        ],
    )  # fmt: skip
    def test_what_templates_of_the_field_use(self, source: str, text: str) -> None:
        """Text, loops, macros and filters give what Transformers would give."""
        assert text == render(source)

    def test_chatml(self) -> None:
        """A whole conversation, up to where the assistant's answer begins."""
        chat = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "<Hi> & é"}]
        assert (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<Hi> & é<|im_end|>\n<|im_start|>assistant\n"
        ) == render(CHATML, chat)

    def test_content_is_not_a_template(self) -> None:
        """What the caller writes is text, also when it looks like Jinja."""
        assert "{{ 7 * 7 }}{% raw %}" == render(
            "{{ messages[0].content }}", [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}]
        )

    def test_a_time_that_stands_still(self) -> None:
        """A request may say what time it is; what is no time is its mistake, by its field."""
        source = "{{ strftime_now('%d %b %Y, %H:%M') }}"
        assert "24 Feb 2031, 07:05" == render(source, arguments={"now": "2031-02-24T07:05:00"})
        with pytest.raises(errors.InvalidRequest) as caught:
            render(source, arguments={"now": "tomorrow"})
        assert ["chat.template_arguments.now"] == [field for field, _ in caught.value.violations]

    def test_strftime_now(self) -> None:
        """Templates may write today's date."""
        assert re.fullmatch(r"\d\d \w+ \d{4}", render("{{ strftime_now('%d %b %Y') }}"))

    def test_raise_exception_carries_the_templates_words(self) -> None:
        """The template's own refusal goes to the log, as far as it quotes nobody, and never to the caller."""
        template = ChatTemplate(
            "{% if messages | length > 1 %}{{ raise_exception('Roles must alternate: ' ~ messages[0].content) }}{% endif %}",
            bos="", eos="", max_bytes=MAX_BYTES,
        )  # fmt: skip
        with pytest.raises(errors.TemplateRejected) as caught:
            template.render(CHAT * 2)
        assert "Roles must alternate: " == caught.value.detail
        assert "Roles" not in caught.value.message

    def test_tools(self) -> None:
        """Tools are there when there are any."""
        assert '[{"name": "f"}]' == render("{{ tools | tojson if tools else '' }}", tools=[{"name": "f"}])

    def test_arguments_never_replace_the_standard_variables(self) -> None:
        """A caller's variables are seen by the template, those of the server's names are not."""
        source = "{{ enable_thinking }}|{{ bos_token }}|{{ messages | length }}|{{ add_generation_prompt }}|{{ tools }}"
        arguments = {
            "enable_thinking": False, "bos_token": "X", "eos_token": "X", "messages": [], "tools": [1],
            "add_generation_prompt": False,
        }  # fmt: skip
        assert "False|<s>|1|True|None" == render(source, arguments=arguments)

    def test_arguments_named_like_functions_reach_no_further(self) -> None:
        """A caller may shadow a function with a value for its own request, and for no other."""
        template = ChatTemplate("{{ range is number }}", bos="", eos="", max_bytes=MAX_BYTES)
        assert "True" == template.render(CHAT, arguments={"range": 5})
        assert "False" == template.render(CHAT)


@pytest.mark.parametrize("source", templates.ESCAPES)
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    """No attribute, method, file or import of Python is in a template's reach."""
    with pytest.raises(errors.TemplateInvalid):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ messages[0]['__class__'] }}",
        "{{ ''|attr('__class__') }}", "{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(1) }}",
        "{{ messages|map(attribute='__class__')|join }}",
    ],
)  # fmt: skip
def test_an_unsafe_attribute_is_nothing(source: str) -> None:
    """Reading one gives no word about Python's objects: empty text, or a refusal."""
    try:
        text = render(source)
    except errors.TemplateInvalid:
        text = ""
    assert "" == text


@pytest.mark.parametrize("source", templates.BOMBS.values(), ids=templates.BOMBS)
def test_bombs_end(source: str) -> None:
    """Time, memory and depth that a template can spend are bounded; its model is refused with TEMPLATE_INVALID."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(errors.TemplateInvalid):
        render(source)
    assert time.monotonic() - begin < 5
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (400 << 10), "KiB of peak memory"


@pytest.mark.parametrize(
    "source", ["{{", "{% if %}", "{% endif %}", "{{ x | nosuchfilter }}", "{% generation %}"]
)
def test_what_cannot_be_compiled_is_invalid(source: str) -> None:
    """A template with a mistake fails the load, and says so only in the log."""
    with pytest.raises(errors.TemplateInvalid) as caught:
        render(source)
    assert "the chat template cannot be compiled" == caught.value.message
    assert caught.value.detail


def test_what_fails_on_a_plain_conversation_is_invalid() -> None:
    """A template must answer the plainest conversation; the reason stands in the log."""
    with pytest.raises(errors.TemplateInvalid) as caught:
        render("{{ raise_exception('never') }}")
    assert ("the chat template fails on a plain conversation", "never") == (
        caught.value.message,
        caught.value.detail,
    )


def test_the_output_is_bounded() -> None:
    """A conversation may have the server's limit of bytes, and not one more."""
    source = "{{ messages[0].content }}"
    text = "é" * 500
    assert text == render(source, [{"role": "user", "content": text}], max_bytes=1000)
    with pytest.raises(errors.TemplateRejected) as caught:
        render(source, [{"role": "user", "content": text + "a"}], max_bytes=1000)
    assert "the rendered conversation exceeds the server's limit" == caught.value.detail


def test_a_bomb_may_wait_for_a_conversation() -> None:
    """What a plain conversation does not set off is refused when it goes off, and the next one is rendered."""
    template = ChatTemplate(
        "{% if messages | length > 1 %}{{ 'a' * 10000000000 }}{% endif %}ok",
        bos="",
        eos="",
        max_bytes=MAX_BYTES,
    )
    for _ in range(2):
        with pytest.raises(errors.TemplateRejected):
            template.render(CHAT * 2)
        assert "ok" == template.render(CHAT)


def test_a_long_conversation_has_room() -> None:
    """The bounds are for bombs: thousands of messages at the limit of the server render."""
    chat = [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y" * 900}] * 2000
    assert len(chat) == render(CHATML, chat).count("<|im_end|>")


def test_a_text_that_is_gathered_has_room() -> None:
    """Templates that gather messages in a list or a text first are slower, not refused."""
    source = (
        "{% set ns = namespace(seen=[], text='') %}{% for m in messages %}{% set ns.seen = ns.seen + [m] %}"
        "{% set ns.text = ns.text ~ m.content %}{% endfor %}{{ ns.seen | length }} {{ ns.text | length }}"
    )
    assert "300 30000" == render(source, [{"role": "user", "content": "x" * 100}] * 300)


def test_text_that_is_no_utf8_is_refused() -> None:
    """A lone surrogate, which a template can write, never reaches the tokenizer."""
    with pytest.raises(errors.TemplateInvalid):
        render("{{ '\\ud800' }}")
