"""What a chat template may do: a Jinja sandbox whose every loop and every growing value is paid from one allowance.

Jinja's own sandbox keeps a template from Python's objects, not from the machine's time and memory: forty doublings of a
text fill any memory, and an empty loop in a loop yields nothing that could be counted. Here each pass of a loop, each call and
each new text or list is charged before it is made.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.visitor

from inferwire_server import errors

REFERENCE_BYTES = 8
PASS_BYTES = 64
MAX_INTEGER_BITS = 1 << 14
MAX_INDENT = 16

# Jinja's filters whose result is not much larger than what they are given. Those that grow it are below.
_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int",
    "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "sort", "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_FORBIDDEN_METHODS = {"center", "encode", "expandtabs", "format_map", "ljust", "rjust", "translate", "zfill"}
_WIDE_FORMAT = re.compile(r"\d{4}|:[^}]*\{")


class Refused(Exception):
    """The template, or the sandbox on its behalf, refuses the conversation; the words say why."""


class RefusedByTemplate(Refused):
    """The template's own words, in which those of the conversation may be."""


class Allowance:
    """What one rendering may still spend: bytes of new values, and time."""

    def __init__(self, *, max_bytes: int, max_seconds: float) -> None:
        self.left = max_bytes
        self._end = time.monotonic() + max_seconds

    def __repr__(self) -> str:
        return f"<Allowance [{self.left} bytes | {self._end - time.monotonic():.3f} s]>"

    def charge(self, size: int) -> None:
        """Takes `size` bytes from what is left. Refused when there is not as much, or no time."""
        if size > self.left:
            raise Refused("the template makes more text or lists than the limit")
        self.left -= size
        if time.monotonic() > self._end:
            raise Refused("rendering took too long")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles and runs templates, one at a time, each rendering on the `allowance` that its caller has set."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, allowance: Allowance) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            undefined=jinja2.ChainableUndefined,
            finalize=self._written,
        )
        self.allowance = allowance
        # What a macro or a block of `set` has gathered.
        self.concat = self._joined  # type: ignore[method-assign]
        self.filters = {name: self._paid(self.filters[name]) for name in _FILTERS} | {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "string": lambda value: str(self._written(value)),
            "tojson": self._tojson,
            _Metering.PASSES: self._passes,
            _Metering.JOINED: lambda values: self._joined([str(self._written(value)) for value in values]),
            _Metering.REFERENCES: self._references,
        }
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template: jinja2.nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: PYI063
        """Calls a function, a macro or a method on a template's behalf."""
        # The names are mangled as in the base class, so that a template's keyword arguments cannot meet them.
        method = getattr(__obj, "__wrapped__", __obj)
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str | bytes):
            __self._check_method(text, name, *args, **kwargs)
        __self.allowance.charge(PASS_BYTES)
        return __self._references(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes an operator that can make large values."""
        match operator:
            case "+" if _is_sized(left) and _is_sized(right):
                self.allowance.charge(self._size(left, texts=isinstance(left, str | bytes)))
                self.allowance.charge(self._size(right, texts=isinstance(right, str | bytes)))
            case "*":
                for value, times in ((left, right), (right, left)):
                    if _is_sized(value) and isinstance(times, int):
                        self.allowance.charge(
                            max(0, times) * self._size(value, texts=isinstance(value, str | bytes))
                        )
                are_integers = isinstance(left, int) and isinstance(right, int)
                if are_integers and left.bit_length() + right.bit_length() > MAX_INTEGER_BITS:
                    raise Refused("a number beyond the limit")
            case "**":
                if not all(isinstance(value, int | float) and abs(value) <= 1024 for value in (left, right)):
                    raise Refused("a power beyond the limit")
            case "%" if isinstance(left, str | bytes):
                raise Refused("string formatting by % is not offered")
        return super().call_binop(context, operator, left, right)

    def _size(self, value: Any, *, texts: bool) -> int:
        """Returns the bytes of a value with all that it holds, or more than is left; without `texts` only of references.

        A list that is held a million times counts a million times: so it would be written, compared and hashed.
        """
        size, values = 0, [value]
        while values and size <= self.allowance.left:
            value = values.pop()
            if isinstance(value, str | bytes):
                size += len(value) if texts else REFERENCE_BYTES
            elif isinstance(value, list | tuple | set | frozenset | Mapping):
                # As much as it takes in memory, about; and what is looked into costs time, so it is not cheap.
                size += (4 if isinstance(value, Mapping) else 2) * PASS_BYTES + REFERENCE_BYTES * len(value)
                if size <= self.allowance.left:
                    values += value
                    values += value.values() if isinstance(value, Mapping) else ()
            else:
                size += REFERENCE_BYTES
        return size

    def _written(self, value: Any) -> Any:
        """Charges a value that is about to become text."""
        self.allowance.charge(self._size(value, texts=True))
        return value

    def _references(self, value: Any) -> Any:
        """Charges a list, or a text, that was just made."""
        self.allowance.charge(self._size(value, texts=isinstance(value, str | bytes)))
        return value

    def _passes(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.allowance.charge(PASS_BYTES)
            yield item

    def _joined(self, pieces: Iterable[str]) -> str:
        pieces = list(pieces)
        self.allowance.charge(sum(map(len, pieces)))
        return "".join(pieces)

    def _paid(self, filter: Callable[..., Any]) -> Callable[..., Any]:
        # `wraps` keeps the marks by which Jinja knows what to pass.
        @functools.wraps(filter)
        def paid(*args: Any, **kwargs: Any) -> Any:
            return self._references(filter(*args, **kwargs))

        return paid

    def _check_method(self, text: str | bytes, name: str, *args: Any, **kwargs: Any) -> None:
        if name in _FORBIDDEN_METHODS or not isinstance(text, str):
            raise Refused(f"{name} is not offered")
        match name:
            case "format":
                if _WIDE_FORMAT.search(text):
                    raise Refused("a format beyond the limit")
                self.allowance.charge(text.count("{") * self._size([*args, *kwargs.values()], texts=True))
            case "join" if args:
                pieces = list(args[0])
                self.allowance.charge(len(text) * len(pieces))
                self._written(pieces)
            case "replace" if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
                self.allowance.charge(text.count(args[0]) * len(args[1]))

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        pieces: list[str] = []
        for value in values:
            item = value if attribute is None else self.getitem(value, attribute)
            pieces += [str(d)] if pieces else []
            pieces.append(str(self._written(item)))
        return self._joined(pieces)

    def _replace(self, text: Any, old: str, new: str, count: int | None = None) -> str:
        text, old, new = str(self._written(text)), str(self._written(old)), str(self._written(new))
        self._check_method(text, "replace", old, new)
        replaced: str = text.replace(old, new, -1 if count is None else count)
        return replaced

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        margin = width if isinstance(width, str) else " " * min(width, 256)
        lines = str(self._written(text)).splitlines(keepends=True)
        self.allowance.charge(len(lines) * len(margin))
        return "".join(
            margin + line if (first or number > 0) and (blank or line.strip()) else line
            for number, line in enumerate(lines)
        )

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Every reference may begin a line, and half the lines of a value are at most as deep as it has brackets.
        spaces = 0 if indent is None else min(int(indent), MAX_INDENT)
        self.allowance.charge((1 + spaces) * self._size(value, texts=True))
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=None if indent is None else spaces,
            separators=separators,
            sort_keys=sort_keys,
        )


class _Metering(jinja2.visitor.NodeTransformer):
    """Puts a filter around what costs something and calls nothing: loops, `~`, slices, and lists written out."""

    PASSES = " passes"
    JOINED = " joined"
    REFERENCES = " references"

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, self.PASSES)  # type: ignore[arg-type]
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return self._filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), self.JOINED)

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return self._filtered(node, self.REFERENCES) if isinstance(node.arg, jinja2.nodes.Slice) else node

    def visit_List(self, node: jinja2.nodes.List | jinja2.nodes.Dict) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return self._filtered(node, self.REFERENCES)

    visit_Dict = visit_List

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:
        self.generic_visit(node)
        # A tuple may also be what is assigned to.
        return self._filtered(node, self.REFERENCES) if node.ctx == "load" else node

    def _filtered(self, node: jinja2.nodes.Expr, name: str) -> jinja2.nodes.Filter:
        return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}, which marks what the model writes; it changes nothing when rendering."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _raise_exception(message: str) -> None:
    raise RefusedByTemplate(str(message)[:1000])


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(str(format)[:256])


def fixed_clock(now: object) -> Callable[[str], str]:
    """Returns a `strftime_now` that stands still at a time in ISO 8601. errors.InvalidRequest when it is none."""
    try:
        moment = datetime.datetime.fromisoformat(str(now))
    except ValueError as error:
        raise errors.InvalidRequest(
            "the time is not written in ISO 8601", violations=[("chat.template_arguments.now", str(error))]
        ) from error
    return lambda format: moment.strftime(str(format)[:256])
