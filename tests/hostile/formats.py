"""Response formats that cannot be enforced, or would cost too much: each must be refused, and kill nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

from inferwire.v1 import inference_pb2 as pb

NEST = 60_000


def gbnf(text: str) -> pb.ResponseFormat:
    """Returns a format that is a grammar in llama.cpp's notation."""
    return pb.ResponseFormat(grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_GBNF, text=text))


def lark(text: str) -> pb.ResponseFormat:
    """Returns a format that is a grammar in Lark's notation."""
    return pb.ResponseFormat(grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_LARK, text=text))


def schema(value: object) -> pb.ResponseFormat:
    """Returns a format that is a JSON schema; text is taken as it is."""
    return pb.ResponseFormat(json_schema=value if isinstance(value, str) else json.dumps(value))


def regex(text: str) -> pb.ResponseFormat:
    """Returns a format that is a regular expression."""
    return pb.ResponseFormat(regex=text)


def _nested(levels: int, key: str = "items") -> str:
    return f'{{"{key}":' * levels + "{}" + "}" * levels


def _exponential() -> dict[str, object]:
    """Returns a schema of a few lines that describes 8^12 objects."""
    definitions: dict[str, object] = {
        f"d{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{n + 1}"} for k in "abcdefgh"}}
        for n in range(12)
    }
    return {"$defs": definitions | {"d12": {"not": {}}}, "$ref": "#/$defs/d0"}


def _all() -> Iterator[tuple[str, pb.ResponseFormat]]:
    yield "60,000 parentheses", gbnf("root ::= " + "(" * NEST + '"a"' + ")" * NEST)
    yield "60,000 parentheses in Lark", lark("start: " + "(" * NEST + '"a"' + ")" * NEST)
    yield "60,000 parentheses in a regex", regex("(" * NEST + "a" + ")" * NEST)
    yield "60,000 brackets that open", regex("[" * NEST)
    yield "60,000 braces that open", schema("{" * NEST)
    yield "60,000 brackets in a schema", schema("[" * NEST + "]" * NEST)
    yield "nested schema", schema(_nested(400))
    yield "deeply nested schema", schema(_nested(20_000))
    yield "nested properties", schema(_nested(200, "not"))
    yield "nested allOf", schema('{"allOf":[' * 200 + "{}" + "]}" * 200)
    yield "exponential schema", schema(_exponential())
    # What cannot be read.
    yield "unclosed regex", regex("(")
    yield "unclosed class", regex("[a")
    yield "nothing to repeat", regex("*")
    yield "a repetition that runs backwards", regex("a{3,2}")
    yield "a class that runs backwards", regex("[z-a]")
    yield "unknown escape", regex(r"\p{Nonsense}")
    yield "unknown group", regex(r"(?Zx)")
    yield "trailing backslash", regex("\\")
    yield "unknown rule", gbnf("root ::= nope")
    yield "no root", gbnf('other ::= "a"')
    yield "not a grammar", gbnf("\0\1 ::= {{{")
    yield "unclosed text", gbnf('root ::= "a')
    yield "unclosed class in a grammar", gbnf("root ::= [a")
    yield "unclosed group in a grammar", gbnf('root ::= ("a"')
    yield "closed but not opened", gbnf('root ::= "a")')
    yield "no arrow", gbnf('root "a"')
    yield "an arrow and nothing", gbnf("::=")
    yield "words", gbnf("please answer in French")
    yield "words in Lark", lark("please answer in French")
    yield "no start", lark('other: "a"')
    yield "start twice", lark('start: "a"\nstart: "b"')
    yield "unknown terminal", lark("start: NOPE")
    yield "unclosed text in Lark", lark('start: "a')
    yield "unclosed regex in Lark", lark("start: /a")
    yield "a bad regex in Lark", lark("start: /(/")
    yield "an import of nothing", lark("%import nothing.NOPE\nstart: NOPE")
    yield "an unknown directive", lark('%override start: "a"')
    yield "not JSON", schema("{'type': 'object'}")
    yield "half a JSON", schema('{"type":')
    yield "a number", schema("42")
    yield "a text", schema('"object"')
    yield "a list", schema("[]")
    yield "null", schema("null")
    yield "bytes that are no JSON", schema("\0\1\2")
    # What says nothing, or cannot be.
    yield "left recursion to nowhere", lark("start: start")
    yield "mutual recursion to nowhere", lark("start: a\na: b\nb: a")
    yield "impossible numbers", schema({"type": "integer", "minimum": 5, "maximum": 4})
    yield "impossible lengths", schema({"type": "string", "minLength": 5, "maxLength": 4})
    yield "impossible lists", schema({"type": "array", "minItems": 5, "maxItems": 4})
    yield "an empty enumeration", schema({"enum": []})
    yield "never", schema({"not": {}})
    # What cannot be enforced token by token.
    yield "unique items", schema({"type": "array", "uniqueItems": True})
    yield "a remote reference", schema({"$ref": "http://127.0.0.1:1/schema"})
    yield "a file", schema({"$ref": "file:///etc/passwd"})
    yield "a reference to nowhere", schema({"$ref": "#/$defs/nope"})
    yield "a reference to itself", schema({"$ref": "#"})
    yield "an unknown type", schema({"type": "nonsense"})
    yield "an unknown format", schema({"type": "string", "format": "nonsense"})
    yield "a bad pattern", schema({"type": "string", "pattern": "("})
    yield "a condition", schema({"if": {"type": "string"}, "then": {"minLength": 3}})
    yield "dependencies", schema({"type": "object", "dependentRequired": {"a": ["b"]}})
    yield "contains", schema({"type": "array", "contains": {"type": "string"}})
    yield "names of properties", schema({"type": "object", "propertyNames": {"pattern": "^a"}})
    yield "a back reference", regex(r"(a)\1")
    yield "a named back reference", regex(r"(?P<n>a)(?P=n)")
    yield "a look ahead", regex(r"a(?=b)")
    yield "a look behind", regex(r"(?<=a)b")
    yield "a word boundary", regex(r"\ba\b")
    # What costs too much.
    yield "a repetition of a thousand million", regex("a{1000000000}")
    yield "a repetition of three", regex("(abc){100000}")
    yield "a repetition in a grammar", gbnf('root ::= "a"{1000000000}')
    yield (
        "a hundred thousand rules",
        gbnf("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(100_000))),
    )


FORMATS = dict(_all())
