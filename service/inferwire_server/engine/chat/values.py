"""Reads the values that models write as arguments, JSON or near it, and gives them as JSON text.

Character by character: what is given is at every moment the beginning of a valid JSON text, whatever was read, and nothing is
given that a later character could take back.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .markers import Marker, Search, Watch

# What reads the arguments later recurses; nobody nests so deeply.
MAX_NESTING = 128


@dataclass(frozen=True)
class Dialect:
    """How a value may be written besides JSON: strings between `delimiters`, as they are; bare keys; or Python's literals.

    Python's calls are values, too: `name(key=value)` is the object of its arguments.
    """

    delimiters: tuple[tuple[str, str], ...] = ()
    has_bare_keys: bool = False
    is_python: bool = False

    @property
    def quotes(self) -> str:
        return "\"'" if self.is_python else '"'


JSON = Dialect()
PYTHON = Dialect(is_python=True)


class ValueReader:
    """Reads one value. `give` takes its JSON text in pieces, `end` is told of every value in it that has ended.

    While either is called, `path` holds the keys from the root to the value ("" for an element of a list); both may set
    `is_broken`. `unsaid` is what was read and not given; whoever uses what was given clears it. `begins` are the characters with
    which the value may begin, all when empty.
    """

    def __init__(
        self, dialect: Dialect, give: Callable[[str], None], end: Callable[[], None], *, begins: str = ""
    ) -> None:
        self._dialect = dialect
        self._give = give
        self._end = end
        self._begins = begins
        self._stack: list[str] = []
        self._state = self._value
        self._key = ""
        self._key_text: list[str] | None = None
        self._held: list[str] = []
        self._word: list[str] = []
        self._quote = ""
        self._escape = ""
        self._search: Search | None = None
        self.path: list[str] = []
        self.unsaid: list[str] = []
        # The name of the call that is being read.
        self.called = ""
        self.is_done = False
        self.is_broken = False

    def __repr__(self) -> str:
        return f"<ValueReader [{''.join(self._stack)} | path {self.path} | unsaid {self.unsaid}]>"

    def read(self, text: str, at: int) -> int:
        """Reads on from text[at]. Returns where it stopped: at the end, behind the value, or before what is no part of one."""
        while at < len(text) and not self.is_done and not self.is_broken:
            at = self._state(text, at)
        return at

    def _value(self, text: str, at: int) -> int:
        character = text[at]
        if character in _WHITE_SPACE:
            return self._white_space(text, at)
        if self._begins and not self._stack and character not in self._begins:
            self.is_broken = True
            return at
        if character in "{[":
            self._begin_value()
            return self._open(character, text, at)
        if character == "]" and self._stack and self._stack[-1] == "[":
            return self._close(text, at)
        if character in self._dialect.quotes:
            self._begin_value()
            return self._open_string(text, at)
        if self._may_be_delimiter(character):
            self._begin_value()
            self._state = self._delimiter
            return at
        if _WORD.match(text, at):
            self._begin_value()
            self._state = self._scalar
            return at
        self.is_broken = True
        return at

    def _open(self, bracket: str, text: str, at: int) -> int:
        if len(self._stack) >= MAX_NESTING:
            self.is_broken = True
            return at
        self._stack.append(bracket)
        self.unsaid.append(text[at])
        self._give("[" if bracket == "[" else "{")
        self._key = ""
        self._state = self._value if bracket == "[" else self._key_or_end
        return at + 1

    def _close(self, text: str, at: int) -> int:
        # A comma before the end is common, and wrong in JSON.
        self._held = [held for held in self._held if held != ","]
        self._flush()
        bracket = self._stack.pop()
        self.unsaid.append(text[at])
        self._give("]" if bracket == "[" else "}")
        self._end_value()
        return at + 1

    def _key_or_end(self, text: str, at: int) -> int:
        character = text[at]
        if character in _WHITE_SPACE:
            return self._white_space(text, at)
        if character == _CLOSING[self._stack[-1]]:
            return self._close(text, at)
        self._key_text = []
        is_call = self._stack[-1] == "("
        if _NAME.match(text, at) if is_call else self._dialect.has_bare_keys and _BARE_KEY.match(text, at):
            self._state = self._bare_key
            return at
        if character in self._dialect.quotes and not is_call:
            return self._open_string(text, at)
        if self._may_be_delimiter(character) and not is_call:
            self._state = self._delimiter
            return at
        self.is_broken = True
        return at

    def _bare_key(self, text: str, at: int) -> int:
        run = _BARE_KEY.match(text, at)
        if run:
            self._word.append(run[0])
            self.unsaid.append(run[0])
            return run.end()
        assert self._key_text is not None
        self._key_text.append(quoted("".join(self._word)))
        self._word.clear()
        self._end_string()
        return at

    def _colon(self, text: str, at: int) -> int:
        if text[at] in _WHITE_SPACE:
            return self._white_space(text, at)
        if text[at] == ("=" if self._stack[-1] == "(" else ":"):
            self.unsaid.append(text[at])
            self._flush()
            assert self._key_text is not None
            self._give("".join(self._key_text))
            self._key_text = None
            self._held.append(":")
            self._state = self._value
            return at + 1
        self.is_broken = True
        return at

    def _comma(self, text: str, at: int) -> int:
        character, bracket = text[at], self._stack[-1]
        if character in _WHITE_SPACE:
            return self._white_space(text, at)
        if character == ",":
            self.unsaid.append(character)
            self._held.append(character)
            self._key = ""
            self._state = self._value if bracket == "[" else self._key_or_end
            return at + 1
        if character == _CLOSING[bracket]:
            return self._close(text, at)
        self.is_broken = True
        return at

    def _white_space(self, text: str, at: int) -> int:
        run = _WHITE_SPACES.match(text, at)
        assert run is not None
        self.unsaid.append(run[0])
        self._held.append(run[0])
        return run.end()

    def _scalar(self, text: str, at: int) -> int:
        run = _WORD.match(text, at)
        if run:
            self._word.append(run[0])
            self.unsaid.append(run[0])
            return run.end()
        word = "".join(self._word)
        if text[at] == "(" and self._dialect.is_python and self._stack == ["["] and _CALLED.fullmatch(word):
            self._word.clear()
            self.called = word
            return self._open("(", text, at)
        scalar = _python_scalar(word) if self._dialect.is_python else word
        if not _SCALAR.fullmatch(scalar):
            self.is_broken = True
            return at
        self._word.clear()
        self._give(scalar)
        self._end_value()
        return at

    def _may_be_delimiter(self, text: str) -> bool:
        return any(opening.startswith(text) for opening, _ in self._dialect.delimiters)

    def _delimiter(self, text: str, at: int) -> int:
        self._word.append(text[at])
        word = "".join(self._word)
        if not self._may_be_delimiter(word):
            self._word.pop()
            self.is_broken = True
            return at
        self.unsaid.append(text[at])
        for opening, closing in self._dialect.delimiters:
            if word == opening:
                self._word.clear()
                self._search = Search(_closing_watch(closing))
                self._say('"')
                self._state = self._delimited
        return at + 1

    def _delimited(self, text: str, at: int) -> int:
        assert self._search is not None
        begin, at = at, self._search.push(text, at)
        self.unsaid.append(text[begin:at])
        inner = self._search.take()
        if inner:
            self._say(quoted(inner)[1:-1])
        if self._search.found:
            self._search = None
            self._say('"')
            self._end_string()
        return at

    def _open_string(self, text: str, at: int) -> int:
        self._quote = text[at]
        self.unsaid.append(text[at])
        self._say('"')
        self._state = self._string
        return at + 1

    def _string(self, text: str, at: int) -> int:
        run = _PLAIN.match(text, at)
        if run:
            self.unsaid.append(run[0])
            self._say(run[0])
            return run.end()
        character = text[at]
        self.unsaid.append(character)
        if character == self._quote:
            self._say('"')
            self._end_string()
        elif character == "\\":
            self._escape = character
            self._state = self._escaped
        else:
            self._say(quoted(character)[1:-1])
        return at + 1

    def _escaped(self, text: str, at: int) -> int:
        """Reads an escape. One that means nothing stands for itself: models write regular expressions."""
        escape = self._escape + text[at]
        if _HEXADECIMAL_BEGIN.fullmatch(escape) and (escape[1] == "u" or self._dialect.is_python):
            self.unsaid.append(text[at])
            self._escape = escape
            if len(escape) == _HEXADECIMAL_LENGTH[escape[1]]:
                self._state = self._string
                self._say(_hexadecimal(escape))
            return at + 1
        self._state = self._string
        if len(self._escape) > 1:
            self._say("\\" + self._escape)
            return at
        self.unsaid.append(text[at])
        if text[at] in _SIMPLE_ESCAPES:
            self._say(escape)
        elif text[at] == "'":
            self._say("'")
        elif self._dialect.is_python and text[at] in _PYTHON_ESCAPES:
            self._say(_PYTHON_ESCAPES[text[at]])
        else:
            self._say("\\\\" + quoted(text[at])[1:-1])
        return at + 1

    def _say(self, piece: str) -> None:
        if self._key_text is None:
            self._give(piece)
        else:
            self._key_text.append(piece)

    def _end_string(self) -> None:
        if self._key_text is None:
            self._end_value()
            return
        self._key = json.loads("".join(self._key_text))
        self._state = self._colon

    def _begin_value(self) -> None:
        self._flush()
        if self._stack:
            self.path.append(self._key)

    def _end_value(self) -> None:
        self._end()
        if self._stack:
            self.path.pop()
            self._state = self._comma
        else:
            self.is_done = True

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._give("".join(held))


def whole(text: str, dialect: Dialect = JSON) -> str | None:
    """Returns the JSON text of a whole value, None when it is not one."""
    pieces: list[str] = []
    reader = ValueReader(dialect, pieces.append, lambda: None)
    # A scalar ends only with what follows it.
    at = reader.read(text + "\n", 0)
    return "".join(pieces) if reader.is_done and not text[at:].strip() else None


def cast(text: str, schema: Any, root: Any = None) -> str:
    """Returns a parameter that was written as bare text as JSON text, of the type that its schema asks for.

    The types are tried in the schema's order, as Hugging Face Transformers' parser does; what fits none is a string.
    """
    schema = resolved(schema, root)
    for choice in _choices(schema):
        if text == choice or (not isinstance(choice, str) and text.strip() == json.dumps(choice)):
            return json.dumps(choice, ensure_ascii=False)
    for type_name in types_of(schema, root):
        converted = _converted(text.strip(), type_name)
        if converted is not None:
            return converted
    return quoted(text)


def types_of(schema: Any, root: Any = None) -> list[str]:
    """Returns the types that a schema allows, in its order; none when it does not say."""
    types: list[str] = []
    seen: set[int] = set()
    pending = [schema]
    while pending:
        schema = resolved(pending.pop(), root)
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        declared = schema.get("type")
        types += [
            name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)
        ]
        types += ["null"] if schema.get("nullable") is True else []
        choices = [schema.get(union) for union in ("anyOf", "oneOf")]
        pending += reversed([choice for union in choices if isinstance(union, list) for choice in union])
    return types


def resolved(schema: Any, root: Any) -> Any:
    """Returns what a schema refers to within its own document; the schema itself when it does not refer to anything there."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target = root
        for key in reference[2:].split("/"):
            target = (
                target.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
            )
        if target is None:
            return schema
        schema = target
    return schema


def quoted(text: str) -> str:
    """Returns a text as a JSON string. Halves of a character, which no message can hold, are escapes in it."""
    return json.dumps(text, ensure_ascii=bool(_SURROGATES.search(text)))


def without_surrogates(text: str) -> str:
    """Returns a JSON text with escapes in place of halves of a character, which can only be in its strings."""
    return _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_WHITE_SPACE = " \t\n\r"
_WHITE_SPACES = re.compile(r"[ \t\n\r]+")
_WORD = re.compile(r"[\w.+\-]+")
_NAME = re.compile(r"[^\W\d]\w*")
# Tools may have names that Python would not know.
_CALLED = re.compile(r"[\w.\-]+")
_BARE_KEY = re.compile(r"[\w$.\-]+")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f]+")
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_SIMPLE_ESCAPES = frozenset('"\\/bfnrt')
_PYTHON_ESCAPES = {"a": "\\u0007", "v": "\\u000b", "0": "\\u0000", "\n": ""}
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_SURROGATES = re.compile("[\ud800-\udfff]")
_HEXADECIMAL_BEGIN = re.compile(r"\\(?:x[0-9a-fA-F]{0,2}|u[0-9a-fA-F]{0,4}|U[0-9a-fA-F]{0,8})")
_HEXADECIMAL_LENGTH = {"x": 4, "u": 6, "U": 10}


@functools.lru_cache(maxsize=64)
def _closing_watch(closing: str) -> Watch:
    return Watch.of([Marker.literals([closing])])


def _hexadecimal(escape: str) -> str:
    if escape[1] == "u":
        return escape
    code = int(escape.removeprefix("\\x").removeprefix("\\U"), 16)
    return quoted(chr(code))[1:-1] if code <= 0x10FFFF else "\\" + escape


def _python_scalar(word: str) -> str:
    if word in _PYTHON_WORDS or _SCALAR.fullmatch(word):
        return _PYTHON_WORDS.get(word, word)
    return _number(word) or word


def _number(text: str) -> str | None:
    try:
        number = float(text)
        if not math.isfinite(number):
            return None
        return str(int(text)) if re.fullmatch(r"[+-]?[0-9_]+", text) else json.dumps(number)
    except ValueError:
        return None


def _choices(schema: Any) -> list[Any]:
    if not isinstance(schema, Mapping):
        return []
    if "const" in schema:
        return [schema["const"]]
    choices = schema.get("enum")
    return choices if isinstance(choices, list) else []


def _converted(text: str, type_name: str) -> str | None:
    match type_name:
        case "integer" | "number":
            number = text if _SCALAR.fullmatch(text) and text[0] not in "tfn" else _number(text)
            if number is None or type_name == "number" or re.fullmatch(r"-?[0-9]+", number):
                return number
            # An integer may be written as 3.0.
            value = float(number)
            return str(int(value)) if value.is_integer() else None
        case "boolean":
            return {"true": "true", "1": "true", "false": "false", "0": "false"}.get(text.lower())
        case "null":
            return "null" if text in ("null", "None") else None
        case "object" | "array":
            opening = "{" if type_name == "object" else "["
            if text.startswith(opening):
                return whole(text) or whole(text, PYTHON)
    return None
