"""Chat templates are untrusted code: they may do what templates of the field do, and nothing more."""

from __future__ import annotations

import re
import resource
import time
from typing import Any

import pytest

from inferwire_server import errors
from inferwire_server.engine.chat.template import ChatTemplate

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


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}{{ ''.__class__.__base__.__subclasses__()[0] }}",
        "{{ messages.__class__.__init__.__globals__ }}x{{ messages.__init__.__globals__['os'].system('id') }}",
        "{{ (''|attr('__class__')|attr('__mro__'))[0].mro() }}",
        "{{ raise_exception.__globals__['json'].codecs.open('/etc/passwd').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
        "{{ self._TemplateReference__context.environment.from_string('x').render() }}",
        "{{ namespace.__init__.__globals__.x() }}",
        "{{ strftime_now.__code__.co_consts[0]() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages)[0].x() }}",
        "{{ '{0.__class__}'.format(1).missing() }}",
        "{{ '%s' % messages }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ messages[0].clear() }}",
        "{{ open('/etc/passwd').read() }}",
        "{{ __import__('os').system('id') }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% extends '/etc/passwd' %}",
        "{{ get_flashed_messages.__globals__.x() }}",
        "{{ messages|map('attr', '__class__')|first()() }}",
        "{{ messages|map(attribute='__class__.__mro__')|first|first|attr('__subclasses__')() }}",
    ],
)  # fmt: skip
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


DOUBLING = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x|length }}"


def doubling(start: str, step: str) -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


BOMBS = {
    "string times": "{{ 'a' * 10000000000 }}",
    "times string": "{{ 10000000000 * 'a' }}",
    "string times string times": "{{ (('a' * 1000000) * 1000) * 1000 }}",
    "list times": "{{ ([0] * 10000000000) | length }}",
    "tuple times": "{{ ((0, 1) * 10000000000) | length }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "power of a text": "{{ 1000 ** 1000 ** 1000 }}",
    "number times number": doubling("3", "ns.x * ns.x"),
    "doubling by +": doubling("'ab'", "ns.x + ns.x"),
    "doubling by ~": doubling("'ab'", "ns.x ~ ns.x"),
    "doubling a list": doubling("[1, 2]", "ns.x + ns.x"),
    "doubling by join": doubling("'ab'", "[ns.x, ns.x] | join"),
    "doubling by str.join": doubling("'ab'", "ns.x.join([ns.x, ns.x])"),
    "doubling by replace": doubling("'ab'", "ns.x | replace('a', ns.x)"),
    "doubling by str.replace": doubling("'ab'", "ns.x.replace('a', ns.x)"),
    "doubling by format": doubling("'ab'", "'{0}{0}'.format(ns.x)"),
    "doubling by tojson": doubling("'ab'", "[ns.x, ns.x] | tojson"),
    "doubling by string": doubling("['ab']", "[ns.x, ns.x] | string"),
    "nested lists written": doubling("['ab']", "[ns.x, ns.x]").replace("ns.x|length", "ns.x"),
    "nested lists compared": (
        "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(60) %}"
        "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}"
    ),
    "nested maps compared": (
        "{% set a = namespace(x={}) %}{% set b = namespace(x={}) %}{% for i in range(60) %}"
        "{% set a.x = {'l': a.x, 'r': a.x} %}{% set b.x = {'l': b.x, 'r': b.x} %}{% endfor %}{{ a.x == b.x }}"
    ),
    "nested dict calls compared": (
        "{% set a = namespace(x={}) %}{% set b = namespace(x={}) %}{% for i in range(60) %}"
        "{% set a.x = dict(l=a.x, r=a.x) %}{% set b.x = dict(l=b.x, r=b.x) %}{% endfor %}{{ a.x == b.x }}"
    ),
    "a block of set": (
        "{% set x = 'a' * 1000000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}{{ y|length }}"
    ),
    "a block of set, literal": (
        "{% set y %}{% for i in range(99999) %}" + "a" * 20000 + "{% endfor %}{% endset %}{{ y|length }}"
    ),
    "a macro's text": (
        "{% macro m() %}{% for i in range(99999) %}" + "a" * 20000 + "{% endfor %}{% endmacro %}{{ m()|length }}"
    ),
    "a filter block": "{% filter upper %}{% for i in range(99999) %}" + "a" * 20000 + "{% endfor %}{% endfilter %}",
    "slices that are kept": (
        "{% set s = 'a' * 4000000 %}{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + [s[1:]] %}{% endfor %}{{ ns.x|length }}"
    ),
    "strings that are kept": (
        "{% set s = 'a' * 4000000 %}{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + [s.upper()] %}{% endfor %}{{ ns.x|length }}"
    ),
    "filtered strings that are kept": (
        "{% set s = 'a' * 4000000 %}{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + [s|upper] %}{% endfor %}{{ ns.x|length }}"
    ),
    "a wide format": "{{ '{:>10000000000}'.format('a') }}",
    "a wide nested format": "{{ '{:>{}}'.format('a', 10000000000) }}",
    "a format map": "{{ '{a:>10000000000}'.format_map({'a': 1}) }}",
    "a percent format": "{{ '%10000000000d' % 1 }}",
    "the format filter": "{{ '%10000000000d' | format(1) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "center": "{{ 'a'.center(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "the center filter": "{{ 'a' | center(10000000000) }}",
    "indent": "{{ ('a\n' * 100000) | indent(10000000000) }}",
    "indent by a text": "{{ ('a\n' * 100000) | indent('a' * 1000000) }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "slice": "{{ [1] | slice(10000000000) | list | length }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1, wrapstring='b' * 1000000) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "sum of lists": "{{ ([[0] * 100000] * 100000) | sum(start=[]) | length }}",
    "a wide tojson": "{% set x = [[[[[[[[1] * 1000]]]]]]] * 100 %}{{ x | tojson(indent=1000000000) }}",
    "tojson of shared lists": "{{ ([('a' * 100000)] * 1000000) | tojson | length }}",
    "join of shared texts": "{{ ([('a' * 100000)] * 1000000) | join | length }}",
    "string of shared lists": "{{ [([('a' * 100000)] * 1000000)] | string | length }}",
    "range": "{{ range(10000000000) | list | length }}",
    "a long loop": "{% for i in range(10000000000) %}{% endfor %}",
    "nested empty loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "deeply nested empty loops": "{% for a in range(99999) %}" * 15 + "{% endfor %}" * 15,
    "nested empty loops over lists": (
        "{% set l = [0] * 100000 %}" + "{% for a in l %}" * 5 + "{% endfor %}" * 5
    ),
    "nested loops with text": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "macros that call macros": (
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}"
    ),
    "endless recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "mutual recursion": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursion by caller": (
        "{% macro a() %}{% call a() %}{{ caller() }}{% endcall %}{% endmacro %}{{ a() }}"
    ),
    "huge output": "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "nested ifs": "{% if true %}" * 5000 + "{% endif %}" * 5000,
    "nested fors": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "a long sum": "{{ " + " + ".join(["1"] * 20000) + " }}",
    "a chain of filters": "{{ 'a'" + "|trim" * 20000 + " }}",
    "a chain of nots": "{{ " + "not " * 20000 + "1 }}",
}  # fmt: skip


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
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
