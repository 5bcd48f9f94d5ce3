"""Finds markers in a text that comes in pieces: literal texts, or a small language of regular expressions.

`re` cannot say whether a text may yet become a match, which is all that a stream wants to know. So a marker is compiled here
into a program whose threads walk along with the text (Pike's way): each character costs at most one step per instruction,
whatever the text is, and which marker is found does not depend on how the text was split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A longer text is no marker. It bounds what is held back, and what a candidate that fails in the end has cost.
MAX_MARKER = 1024
MAX_PROGRAM = 4000


class Marker:
    """What to look for.

    A pattern knows literals, `.`, classes, groups (named ones capture), alternatives, the quantifiers `* + ? {m,n}` and their
    lazy forms, `^` and `\\A` (where the caller says that the text begins), `\\Z` (where it ends), and as the last thing `$` or
    `(?=...)`. `.` is any character. Among several ways to match, the first counts, as in `re`.
    """

    def __init__(self, source: str, program: Sequence[_Instruction], groups: Sequence[str]) -> None:
        self.source = source
        self.program = tuple(program)
        self.groups = tuple(groups)
        # As source of a regular expression: the characters with which a match can begin.
        self.first = _first(self.program)
        self.begins = re.compile(self.first, re.DOTALL).match

    def __repr__(self) -> str:
        return f"<Marker {self.source!r}>"

    @classmethod
    def literals(cls, texts: Sequence[str]) -> Marker:
        """Returns a marker that is any of some texts, the longest that fits."""
        return cls.pattern("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))

    @classmethod
    def pattern(cls, source: str) -> Marker:
        """Returns a marker that is a pattern. ValueError when it is not one of this small language."""
        reader = _PatternReader(source)
        program = _compile(reader.read(), reader.groups)
        return cls(source, program, reader.groups)


@dataclass(frozen=True)
class Watch:
    """Markers to look for at the same time. Of two that begin at the same place the longer counts, then the earlier here."""

    markers: tuple[Marker, ...]
    first: re.Pattern[str]

    @classmethod
    def of(cls, markers: Sequence[Marker]) -> Watch:
        """Returns a watch for these markers; for none it finds nothing."""
        first = "|".join(marker.first for marker in markers) or _NOTHING
        return cls(tuple(markers), re.compile(first, re.DOTALL))


@dataclass(frozen=True, slots=True)
class Found:
    """A marker in the text. `rest` was looked at, too, and follows it."""

    index: int
    text: str
    captures: dict[str, str]
    rest: str


class Search:
    """Looks for the leftmost marker. Text that can be no part of one is free at once; the rest is held until it is decided.

    `found` is the marker; after it was found the search is over. With `skips_space` it is over, too, when there is text other than
    white space before a marker: then `is_stray`.
    """

    def __init__(self, watch: Watch, *, at_start: bool = False, skips_space: bool = False) -> None:
        self._watch = watch
        self._skips_space = skips_space
        self.is_stray = False
        self._runs = [_Run(marker) for marker in watch.markers]
        self._free: list[str] = []
        self._held = ""
        self._base = 0
        self._is_quiet = True
        self.found: Found | None = None
        if at_start:
            for run in self._runs:
                run.seed(0, at_start=True)
            self._settle()

    def __repr__(self) -> str:
        return f"<Search [held {self._held!r} | found {self.found}]>"

    def push(self, text: str, at: int) -> int:
        """Reads on from text[at] until a marker is found or the text ends. Returns where it stopped."""
        while self.found is None and not self.is_stray and at < len(text):
            if self._is_quiet:
                begin = self._next_candidate(text, at)
                self._free.append(text[at:begin])
                self._base += begin - at
                at = begin
            if at < len(text) and not self.is_stray:
                self._step(text[at])
                at += 1
        return at

    def finish(self) -> None:
        """The text ends here: decides what was still open. There may be a marker, with more text behind it."""
        if self.found is None:
            position = self._base + len(self._held)
            for run in self._runs:
                run.finish(position)
            self._settle()
            if self.found is None:
                self._free.append(self._held)
                self._held = ""

    def take(self) -> str:
        """Returns the text before the marker, as far as it is known and was not taken yet."""
        text = "".join(self._free)
        self._free.clear()
        return text

    def abandon(self) -> str:
        """Returns all that was read and not taken, the marker included."""
        found = self.found.text + self.found.rest if self.found else ""
        held, self._held = self._held, ""
        return self.take() + held + found

    def _next_candidate(self, text: str, at: int) -> int:
        """Returns where a marker may begin next, or where there is text that is not skipped."""
        candidate = self._watch.first.search(text, at)
        begin = candidate.start() if candidate else len(text)
        if not self._skips_space:
            return begin
        space = _SPACES.match(text, at, begin)
        end = space.end() if space else at
        self.is_stray = end < begin
        return end

    def _step(self, character: str) -> None:
        position = self._base + len(self._held)
        self._held += character
        for run in self._runs:
            run.step(character, position)
        self._settle()

    def _settle(self) -> None:
        """Decides what can be decided: a marker is found when nothing that began before it, or with it, is still open."""
        alive = min((run.threads[0].start for run in self._runs if run.threads), default=None)
        matched = [(run.best.start, -run.best.end, index) for index, run in enumerate(self._runs) if run.best]
        start, _, index = min(matched, default=(None, 0, 0))
        self._is_quiet = alive is None and start is None
        if start is not None and (alive is None or alive > start):
            self._release(start)
            self.found = self._runs[index].result(index, self._held, self._base)
            self._held = ""
        else:
            undecided = [position for position in (alive, start) if position is not None]
            self._release(min(undecided, default=self._base + len(self._held)))

    def _release(self, position: int) -> None:
        if position > self._base:
            released = self._held[: position - self._base]
            self._free.append(released)
            self.is_stray = self._skips_space and not released.isspace()
            self._held = self._held[position - self._base :]
            self._base = position


def find_last(marker: Marker, text: str) -> int | None:
    """Returns where the last occurrence of a marker ends."""
    watch = Watch.of([marker])
    last: int | None = None
    at = 0
    while True:
        search = Search(watch, at_start=at == 0)
        at = search.push(text, at)
        search.finish()
        if search.found is None:
            return last
        at -= len(search.found.rest)
        last = at
        if at == len(text):
            return last
        # Behind a marker without text the next one is looked for a character further on.
        at += not search.found.text


class _Instruction(NamedTuple):
    kind: str
    # What a character must be, and the same as source of a regular expression.
    test: Callable[[str], object] = lambda _: False
    source: str = ""
    to: int = 0
    other: int = 0


class _Thread(NamedTuple):
    pc: int
    start: int
    # Positions: where the match ends if it looks ahead, then begin and end of every group; -1 is none.
    slots: tuple[int, ...]


class _Best(NamedTuple):
    start: int
    end: int
    slots: tuple[int, ...]


class _Run:
    """One marker's threads, in the order of their rank: the leftmost first, then as the pattern prefers."""

    def __init__(self, marker: Marker) -> None:
        self._marker = marker
        self.threads: list[_Thread] = []
        self.best: _Best | None = None

    def step(self, character: str, position: int) -> None:
        if self.best is None and self._marker.begins(character):
            self.seed(position)
        if not self.threads:
            return
        threads, self.threads = self.threads, []
        program = self._marker.program
        visited: set[int] = set()
        for pc, start, slots in threads:
            if start <= position - MAX_MARKER or not program[pc].test(character):
                continue
            thread = _Thread(pc + 1, start, slots)
            if program[pc + 1].kind == "test":
                # The most common way, made short.
                if pc + 1 not in visited:
                    visited.add(pc + 1)
                    self.threads.append(thread)
            elif self._follow(thread, position + 1, visited):
                # Who has matched outranks all that come behind.
                break

    def seed(self, position: int, *, at_start: bool = False, at_end: bool = False) -> None:
        slots = (-1,) * (1 + 2 * len(self._marker.groups))
        visited = {thread.pc for thread in self.threads}
        self._follow(_Thread(0, position, slots), position, visited, at_start=at_start, at_end=at_end)

    def finish(self, position: int) -> None:
        threads, self.threads = self.threads, []
        visited: set[int] = set()
        for thread in threads:
            if self._follow(thread, position, visited, at_end=True):
                break
        if self.best is None:
            self.seed(position, at_end=True)
        self.threads = []

    def result(self, index: int, held: str, base: int) -> Found:
        assert self.best is not None
        start, end, slots = self.best
        captures = {
            name: held[slots[1 + 2 * number] - base : slots[2 + 2 * number] - base]
            for number, name in enumerate(self._marker.groups)
            if slots[2 + 2 * number] >= 0
        }
        return Found(index, held[start - base : end - base], captures, held[end - base :])

    def _follow(
        self,
        thread: _Thread,
        position: int,
        visited: set[int],
        *,
        at_start: bool = False,
        at_end: bool = False,
    ) -> bool:
        """Follows a thread to where it waits for a character. Returns whether it has matched on the way."""
        stack = [thread]
        while stack:
            pc, start, slots = thread = stack.pop()
            if pc in visited:
                continue
            visited.add(pc)
            instruction = self._marker.program[pc]
            match instruction.kind:
                case "test":
                    self.threads.append(thread)
                case "split":
                    stack.append(_Thread(instruction.other, start, slots))
                    stack.append(_Thread(instruction.to, start, slots))
                case "save":
                    slots = (*slots[: instruction.to], position, *slots[instruction.to + 1 :])
                    stack.append(_Thread(pc + 1, start, slots))
                case "jump":
                    stack.append(_Thread(instruction.to, start, slots))
                case "start" if at_start:
                    stack.append(_Thread(pc + 1, start, slots))
                case "end" if at_end:
                    stack.append(_Thread(pc + 1, start, slots))
                case "end":
                    self.threads.append(thread)
                case "match":
                    self.best = _Best(start, slots[0] if slots[0] >= 0 else position, slots)
                    return True
        return False


# A pattern as a tree: each node is its kind and what belongs to it.
class _Node(NamedTuple):
    kind: str
    children: tuple[_Node, ...] = ()
    source: str = ""
    group: int = 0
    least: int = 0
    most: int | None = None
    is_lazy: bool = False


_NOTHING = r"[^\s\S]"
_SPACES = re.compile(r"\s+")
_EMPTY = _Node("sequence")
# As in `re`, the end, and the line break before it.
_LAST_LINE_END = _Node(
    "ahead", (_Node("sequence", (_Node("repeat", (_Node("test", source=r"\n"),), most=1), _Node("end"))),)
)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\\\]])*\]", re.DOTALL)
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
_ESCAPED = re.compile(r"\\(?:[sSdDwW]|[ntrfv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\sA-Za-z0-9]|\s)", re.DOTALL)
_NAMED = re.compile(r"\(\?P?<(\w+)>")


class _PatternReader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self.groups: list[str] = []

    def read(self) -> _Node:
        node = self._alternatives()
        if self._at < len(self._source):
            raise self._refusal("an unmatched parenthesis")
        return node

    def _alternatives(self) -> _Node:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Node("alternatives", tuple(branches))

    def _sequence(self) -> _Node:
        nodes: list[_Node] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            nodes.append(self._quantified(self._atom()))
        return _Node("sequence", tuple(nodes))

    def _quantified(self, node: _Node) -> _Node:
        count = _COUNT.match(self._source, self._at)
        if self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        elif count:
            self._at = count.end()
            least = int(count[1])
            most = int(count[3]) if count[3] else (None if count[2] else least)
        else:
            return node
        if node.kind in ("start", "end", "ahead") or (most is not None and most < least):
            raise self._refusal("a quantifier that has no meaning")
        node = _Node("repeat", (node,), least=least, most=most, is_lazy=self._take("?"))
        if self._source[self._at : self._at + 1] in ("*", "+", "?"):
            raise self._refusal("a quantifier of a quantifier")
        return node

    def _atom(self) -> _Node:
        source, at = self._source, self._at
        named = _NAMED.match(source, at)
        if named:
            self._at = named.end()
            if named[1] in self.groups:
                number = self.groups.index(named[1])
            else:
                number = len(self.groups)
                self.groups.append(named[1])
            return _Node("group", (self._closed(),), group=number)
        if self._take("(?:"):
            return self._closed()
        if self._take("(?="):
            return _Node("ahead", (self._closed(),))
        if source.startswith("(?", at):
            raise self._refusal(f"a group {source[at : at + 3]!r}")
        if self._take("("):
            return self._closed()
        if self._take("^") or self._take(r"\A"):
            return _Node("start")
        if self._take(r"\Z") or self._take(r"\z"):
            return _Node("end")
        if self._take("$"):
            return _LAST_LINE_END
        if self._take("."):
            return _Node("test", source=r"[\s\S]")
        token = (_CLASS if source[at] == "[" else _ESCAPED).match(source, at)
        if token:
            self._at = token.end()
            return _Node("test", source=token[0])
        if source[at] in "[\\*+?":
            raise self._refusal(repr(source[at : at + 2]))
        self._at += 1
        return _Node("test", source=re.escape(source[at]))

    def _closed(self) -> _Node:
        node = self._alternatives()
        if not self._take(")"):
            raise self._refusal("a group without its end")
        return node

    def _take(self, token: str) -> bool:
        if self._source.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _refusal(self, what: str) -> ValueError:
        return ValueError(f"pattern {self._source!r} has {what} at {self._at}")


def _compile(tree: _Node, groups: Sequence[str]) -> list[_Instruction]:
    program: list[_Instruction] = []

    def add(kind: str, **fields: int) -> int:
        if len(program) >= MAX_PROGRAM:
            raise ValueError("the pattern is too large")
        program.append(_Instruction(kind, **fields))  # type: ignore[arg-type]
        return len(program) - 1

    def split(at: int, *, is_lazy: bool) -> None:
        # The preferred way first: into what is repeated, or past it.
        ways = (at + 1, len(program))
        program[at] = _Instruction("split", to=ways[is_lazy], other=ways[not is_lazy])

    def emit(node: _Node) -> None:
        match node.kind:
            case "test":
                test = re.compile(node.source, re.DOTALL).match
                program[add("test")] = _Instruction("test", test=test, source=node.source)
            case "sequence":
                for child in node.children:
                    emit(child)
            case "alternatives":
                jumps = []
                for child in node.children[:-1]:
                    begin = add("split")
                    emit(child)
                    jumps.append(add("jump"))
                    split(begin, is_lazy=False)
                emit(node.children[-1])
                for jump in jumps:
                    program[jump] = _Instruction("jump", to=len(program))
            case "group":
                add("save", to=1 + 2 * node.group)
                emit(node.children[0])
                add("save", to=2 + 2 * node.group)
            case "ahead":
                add("save", to=0)
                emit(node.children[0])
                add("ahead")
            case "repeat":
                for _ in range(node.least):
                    emit(node.children[0])
                if node.most is None:
                    begin = add("split")
                    emit(node.children[0])
                    add("jump", to=begin)
                    split(begin, is_lazy=node.is_lazy)
                else:
                    begins = []
                    for _ in range(node.most - node.least):
                        begins.append(add("split"))
                        emit(node.children[0])
                    for begin in begins:
                        split(begin, is_lazy=node.is_lazy)
            case _:
                add(node.kind)

    emit(tree)
    add("match")
    return [_after_lookahead(program, pc) for pc in range(len(program))]


def _after_lookahead(program: Sequence[_Instruction], pc: int) -> _Instruction:
    """Returns an instruction; in place of the end of a lookahead, a jump to the end of the pattern, which must come next."""
    if program[pc].kind != "ahead":
        return program[pc]
    after = pc + 1
    while program[after].kind in ("jump", "save"):
        after = program[after].to if program[after].kind == "jump" else after + 1
    if program[after].kind != "match":
        raise ValueError("a lookahead is not the last thing in its pattern")
    return _Instruction("jump", to=pc + 1)


def _first(program: Sequence[_Instruction]) -> str:
    """Returns the characters with which a match can begin, but for one at the very start of the text."""
    stack, visited, sources = [0], {0}, set()
    while stack:
        pc = stack.pop()
        instruction = program[pc]
        match instruction.kind:
            case "test":
                sources.add(instruction.source)
                continue
            case "start" | "end":
                continue
            case "match":
                raise ValueError("the pattern matches the empty text")
            case "jump":
                following = [instruction.to]
            case "split":
                following = [instruction.to, instruction.other]
            case _:
                following = [pc + 1]
        for pc in following:
            if pc not in visited:
                visited.add(pc)
                stack.append(pc)
    return "|".join(sorted(sources)) or _NOTHING
