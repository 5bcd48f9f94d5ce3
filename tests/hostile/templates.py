"""Chat templates that want out of their sandbox, or to spend without end."""

from __future__ import annotations

ESCAPES = (
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
)  # fmt: skip


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
