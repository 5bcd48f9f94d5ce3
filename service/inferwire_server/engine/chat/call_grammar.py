"""Writes the grammar of an answer that must be a tool call, in the form that the model's family knows.

The language is llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md). What such a grammar lets
through, the family's response template reads as calls whose arguments satisfy the tools' schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .calls import Tools
from .family import CallSyntax, Family
from .values import cast, resolved, types_of

# As for response formats: unbounded white space is where a weak model goes to stay.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"


def call_grammar(
    family: Family,
    tools: Tools,
    *,
    is_parallel: bool = True,
    is_inner: bool = False,
    special_tokens: Mapping[str, int] | None = None,
) -> str:
    """Returns the grammar of a call of any of the tools; of several where `is_parallel` and the family has a way to write them.

    Who asks for one tool passes only that one. With `is_inner` what stands around all calls was written before. `special_tokens` are those of the family's tokens that llguidance takes
    for special ones, with their ids: they are written as such, all else as text. ValueError when the family knows no calls, when there are
    no tools, or when a schema asks for what cannot be enforced in the family's form.
    """
    if family.calls is None:
        raise ValueError(f"family {family.name!r} has no way to write calls")
    if not tools:
        raise ValueError("a call needs a tool")
    syntax, writer = family.calls, _Writer(family.calls, special_tokens or {})
    calls: list[str] = []
    for name, schema in tools.items():
        try:
            calls.append(writer.call(name, schema))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the schema of {name!r} is malformed") from error
    call = writer.rule("call", " | ".join(calls))
    if is_parallel and syntax.separator is not None:
        call = f"{call} ({_join([writer.text(syntax.separator), call])})*"
    if not is_inner:
        call = _join([writer.text(syntax.begin), call, writer.text(syntax.end)])
    return "\n".join([f"start: {call}", *writer.rules, ""])


def text_without(marker: str) -> str:
    """Returns the grammar of any text in which the marker is not."""
    return f"start: TEXT\nTEXT: /{_ANY}/ & ~/{_ANY}{_pattern(marker)}{_ANY}/\n"


@dataclass(frozen=True)
class _FreeText:
    """Text up to what stands behind it; the terminal says what it may be, anything when empty."""

    terminal: str


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, syntax: CallSyntax, special_tokens: Mapping[str, int]) -> None:
        self._syntax = syntax
        self._tokens = special_tokens
        texts = sorted(special_tokens, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, texts)) or _NOTHING)
        # The tool's whole schema, and its definitions that have a rule already.
        self._root: Any = None
        self._defined: dict[str, str] = {}
        self.rules: list[str] = []

    def call(self, name: str, schema: Any) -> str:
        """Returns the rule of a call of one tool."""
        self._root, self._defined = schema, {}
        write = {"json": self._json_arguments, "tags": self._tags, "python": self._python, "bare": self._bare}
        places = {
            "{name}": lambda: self.text(name),
            "{arguments}": lambda: write[self._syntax.form](schema or _NO_ARGUMENTS),
            "{id}": lambda: f"/{self._syntax.id}/",
        }
        pieces = re.split("(" + "|".join(map(re.escape, places)) + ")", self._syntax.call)
        return self.rule(
            "tool", _join(places[piece]() if piece in places else self.text(piece) for piece in pieces)
        )

    def rule(self, stem: str, body: str) -> str:
        """Adds a rule. Returns its name."""
        name = f"{stem}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def text(self, text: str) -> str:
        """Returns what matches exactly this text, its control tokens as such."""
        parts: list[str] = []
        at = 0
        for match in self._token.finditer(text):
            parts += [_quoted(text[at : match.start()]), f"<[{self._tokens[match[0]]}]>"]
            at = match.end()
        return _join([*parts, _quoted(text[at:])])

    def until(self, closing: str, body: str = "", without: Sequence[str] = ()) -> str:
        """Returns what matches a text and the first `closing` behind it; none of `without` is in the text."""
        token = self._token.search(closing)
        before = closing[: token.start()] if token else closing
        # A control token that is spelled out would be read as that token.
        absent = [*without, *([] if before else [closing])]
        terminal = f"TEXT_{len(self.rules)}"
        refusals = "".join(f" & ~/{_ANY}{_pattern(text)}{_ANY}/" for text in absent)
        self.rules.append(f"{terminal}: {body or f'/{_ANY}/'}{refusals}")
        if before:
            name = f"text_{len(self.rules)}"
            self.rules.append(f"{name}[suffix={_quoted(before)}]: {terminal}")
            terminal = name
        return _join([terminal, self.text(closing[len(before) :])])

    def _json_arguments(self, schema: Any) -> str:
        is_open = isinstance(schema, Mapping) and not {"type", "$ref", "anyOf", "oneOf", "allOf"} & set(
            schema
        )
        return self._json({**schema, "type": "object"} if is_open else schema)

    def _json(self, schema: Any) -> str:
        schema = dict(schema) if isinstance(schema, Mapping) else {}
        text = json.dumps(schema)
        for key in ("$defs", "definitions"):
            if f'"#/{key}/' in text and isinstance(self._root, Mapping) and key in self._root:
                schema[key] = self._root[key]
        return f"%json {json.dumps(schema | {'x-guidance': {'whitespace_pattern': WHITE_SPACE}})}"

    def _tags(self, schema: Any) -> str:
        """Returns arguments that have a tag each."""
        arguments: list[str] = []
        for key, property, is_required in self._properties(schema):
            if re.search(r"[<>\"\n]", key):
                raise ValueError(f"argument {key!r} cannot be the name of a tag")
            tags = [self._tag(key, value, is_text) for value, is_text in self._tag_values(key, property)]
            rule = self.rule("argument", " | ".join(tags))
            arguments.append(rule if is_required else f"{rule}?")
        return _join(arguments)

    def _tag(self, key: str, value: str | _FreeText, is_text: bool) -> str:
        before, behind = self._syntax.argument.split("{value}")
        opening = self.text(before.replace("{key}", key).replace("{is_text}", "true" if is_text else "false"))
        if isinstance(value, _FreeText):
            return _join([opening, self.until(behind, value.terminal, self._syntax.excludes)])
        return _join([opening, value, self.text(behind)])

    def _tag_values(self, key: str, property: Any) -> list[tuple[str | _FreeText, bool]]:
        """Returns the ways to write a value as bare text, each with whether it is a text.

        Whoever reads it knows the schema and nothing else. So where a value may be a text or something else, it is something else.
        """
        values: list[tuple[str | _FreeText, bool]] = []
        free: list[_FreeText] = []
        has_others = False
        for variant in self._variants(property):
            choices, types = _choices(variant), types_of(variant)
            for choice in choices:
                text = choice if isinstance(choice, str) else json.dumps(choice)
                if json.loads(cast(text, property, self._root)) == choice:
                    values.append((self.text(text) or _EMPTY, isinstance(choice, str)))
            if choices:
                continue
            match types:
                case ["string"]:
                    free.append(_FreeText(_string(variant)))
                case [] if not set(variant) - _ANNOTATIONS:
                    free.append(_FreeText(""))
                case ["null"]:
                    values.append(('"null"', False))
                case ["boolean"]:
                    values.append(('("true" | "false")', False))
                    has_others = True
                case [_]:
                    values.append((self._json(variant), False))
                    has_others = True
                case _:
                    raise ValueError(f"argument {key!r} has no type, which this model's format needs")
        values += [] if has_others else [(text, True) for text in free]
        if not values:
            raise ValueError(f"argument {key!r} cannot be enforced in this model's format")
        return values

    def _variants(self, schema: Any, depth: int = 8) -> list[Mapping[str, Any]]:
        """Returns the schemas of which a value satisfies one, each of one type at most."""
        schema = resolved(schema, self._root)
        if not isinstance(schema, Mapping):
            return [{}]
        for union in ("anyOf", "oneOf"):
            if union in schema and depth > 0:
                return [variant for choice in schema[union] for variant in self._variants(choice, depth - 1)]
        if isinstance(schema.get("type"), list) and not _choices(schema):
            return [{**schema, "type": name} for name in schema["type"]]
        return [schema]

    def _python(self, schema: Any) -> str:
        """Returns arguments as those of a call in Python. Its values are JSON, which differs in three words only."""
        arguments: list[tuple[str, bool]] = []
        for key, property, is_required in self._properties(schema):
            if not key.isidentifier():
                raise ValueError(f"argument {key!r} cannot be the name of an argument in Python")
            property = resolved(property, self._root)
            is_boolean = types_of(property, self._root) == ["boolean"] and not _choices(property)
            value = '("True" | "False")' if is_boolean else self._json(property)
            arguments.append((self.rule("argument", f"{_quoted(key + '=')} {value}"), is_required))
        return self._sequence(arguments, ", ")

    def _properties(self, schema: Any) -> list[tuple[str, Any, bool]]:
        """Returns the arguments of a tool in their order: the key, the schema, whether it is required."""
        schema = resolved(schema, self._root)
        unknown = set(schema) - _OBJECT_KEYWORDS if isinstance(schema, Mapping) else {"true"}
        if unknown:
            raise ValueError(
                f"a schema with {', '.join(sorted(unknown))} cannot be enforced in this model's format"
            )
        declared, required = schema.get("properties", {}), schema.get("required", [])
        properties = declared | {key: {} for key in required if key not in declared}
        return [(key, property, key in required) for key, property in properties.items()]

    def _bare(self, schema: Any) -> str:
        """Returns a value whose keys are bare and whose strings stand between delimiters; JSON what cannot be said so."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if isinstance(reference, str):
            target = resolved(schema, self._root)
            if target is schema:
                raise ValueError(f"{reference!r} is not defined")
            if reference not in self._defined:
                self._defined[reference] = name = f"defined_{len(self.rules)}"
                # Its place, since it may refer to itself.
                self.rules.append("")
                at = len(self.rules) - 1
                self.rules[at] = f"{name}: {self._bare(target)}"
            return self._defined[reference]
        if not isinstance(schema, Mapping) or set(schema) - _BARE_KEYWORDS:
            return self._json(schema if isinstance(schema, Mapping) else {})
        choices = _choices(schema)
        if choices:
            return f"({' | '.join(self._bare_literal(choice) for choice in choices)})"
        if "anyOf" in schema:
            return f"({' | '.join(self._bare(choice) for choice in schema['anyOf'])})"
        match schema.get("type"):
            case "string":
                return _join(
                    [self.text(self._syntax.delimiter), self.until(self._syntax.delimiter, _string(schema))]
                )
            case "array":
                item = self.rule("item", self._bare(schema.get("items", {})))
                return f'"[" {_repeated(item, schema.get("minItems", 0), schema.get("maxItems"))} "]"'
            case "object" if not set(schema) - _OBJECT_KEYWORDS and set(schema) & {"properties", "required"}:
                entries = [
                    (
                        self.rule("entry", f"{_quoted(_bare_key(key) + ':')} {self._bare(property)}"),
                        is_required,
                    )
                    for key, property, is_required in self._properties(schema)
                ]
                return f'"{{" {self._sequence(entries, ",")} "}}"'
            case list(types):
                return f"({' | '.join(self._bare({**schema, 'type': type_name}) for type_name in types)})"
            case _:
                return self._json(schema)

    def _bare_literal(self, value: Any) -> str:
        delimiter = self._syntax.delimiter
        if isinstance(value, str) and delimiter not in value:
            return _join([self.text(delimiter), _quoted(value), self.text(delimiter)])
        return _quoted(json.dumps(value, ensure_ascii=False))

    def _sequence(self, entries: Sequence[tuple[str, bool]], separator: str) -> str:
        """Returns entries in their order with separators between them, of which some may be left out."""
        # From the last entry to the first: what may follow when an entry was written already, and when none was.
        after, alone = _EMPTY, _EMPTY
        for entry, is_required in reversed(entries):
            following = _join([_quoted(separator), entry, after])
            first = _join([entry, after])
            alone = self.rule("first", first if is_required else f"{first} | {alone}")
            after = self.rule("next", following if is_required else f"{following} | {after}")
        return alone


_NOTHING = r"[^\s\S]"
_EMPTY = '""'
_ANY = "(?s:.*)"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"} | {
    "$defs",
    "definitions",
}
_OBJECT_KEYWORDS = _ANNOTATIONS | {"type", "properties", "required", "additionalProperties"}
_BARE_KEYWORDS = (
    _OBJECT_KEYWORDS
    | {"enum", "const", "anyOf", "items", "minItems", "maxItems", "minLength", "maxLength", "pattern"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)


def _join(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _pattern(text: str) -> str:
    return re.sub(r"[\\.+*?()|\[\]{}^$/#&~-]", r"\\\g<0>", text).replace("\n", "\\n")


def _string(schema: Mapping[str, Any]) -> str:
    """Returns the terminal of the text that a schema of strings allows. A format is taken as a remark, as JSON Schema does."""
    terminals = []
    if "minLength" in schema or "maxLength" in schema:
        terminals.append(f"/(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})/")
    if "pattern" in schema:
        terminals.append(f"/{_search(str(schema['pattern']))}/")
    return " & ".join(terminals)


def _search(pattern: str) -> str:
    """Returns the regular expression of the whole texts in which an expression of JSON Schema is found."""
    begins, ends = pattern.startswith("^"), bool(re.search(r"(?<!\\)(?:\\\\)*\$$", pattern))
    if (begins or ends) and "|" in pattern:
        raise ValueError(f"pattern {pattern!r} cannot be enforced in this model's format")
    inner = pattern[begins : len(pattern) - ends].replace(r"\d", "[0-9]").replace(r"\w", "[0-9A-Za-z_]")
    inner = re.sub(r"(?<!\\)/", r"\\/", inner)
    return f"{'' if begins else _ANY}(?:{inner}){'' if ends else _ANY}"


def _choices(schema: Any) -> list[Any]:
    if not isinstance(schema, Mapping):
        return []
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _repeated(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
    return f"{item} {more}" if least else f"({item} {more})?"


def _bare_key(key: str) -> str:
    return key if re.fullmatch(r"[\w$.-]+", key) else json.dumps(key)
