"""A command of the operator as a provider: an assistant's command line, or any tool that reads a prompt and prints an answer.

Each answer is one run of it, as a process group of its own that ends with the answer. No shell is in between, and nothing that
it writes to standard error is told to anybody. What a tool makes of a prompt is its own: one that acts, reads files that a prompt
names or knows commands such as "/help" does so for whoever may call this backend, so give it a user and a directory to match.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import dataclasses
import errno
import itertools
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings, ConfigError, Positive, unknown_value

from .answer import AnswerParser, broken
from .base import Call
from .http_provider import Refusal, failure
from .lines import LineReader
from .provider import Provider

# What a command may know of the server's environment, beside what the operator names.
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
BUSY_SECONDS = 1.0
# Output that nobody has taken yet; beyond it the command has to wait.
MAX_HELD_BYTES = 256 << 10
# How long the pipes may stay open after the command's end, held by a process that left its group.
DRAIN_SECONDS = 0.5
_PLACEHOLDER = re.compile(r"\{(model|system|prompt)\}")
_SHELLS = frozenset({"sh", "ash", "bash", "dash", "fish", "ksh", "zsh"})
# Settings of providers over HTTP.
_FOREIGN = ("base_url", "api_key_env", "api_key_file", "ca_file", "proxy", "headers", "query")
_MAX_COUNT = (1 << 32) - 1


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one kind of line tells. Every rule that fits a line is applied, in their order, up to the one that ends the answer.

    A path is names with dots between them, and "[]" behind a name stands for each element of its list:
    `message.content[].text`. A path that leads nowhere says nothing. The rule is for lines in which each path of `when` leads to
    the value beside it, None where it leads nowhere or to null.

    `text` and `thought` lead to more of them; `tool` to the name of a tool that the command uses itself, told as a thought.
    `paragraph`: what follows stands apart from what came before. `ends`: the answer is over, and where no text came, `answer`
    leads to all of it. `fails`: there is none. `error` leads to the command's word for a failure that `fails` will tell, `finish`
    to its word for why the answer ended. Counts at several paths are added up.
    """

    when: dict[str, str | bool | None]
    text: str = ""
    thought: str = ""
    tool: str = ""
    paragraph: bool = False
    ends: bool = False
    answer: str = ""
    fails: bool = False
    error: str = ""
    finish: str = ""
    prompt_tokens: tuple[str, ...] = ()
    cached_prompt_tokens: tuple[str, ...] = ()
    completion_tokens: tuple[str, ...] = ()
    reasoning_tokens: tuple[str, ...] = ()

    def fits(self, line: object) -> bool:
        """Whether it is about a line."""
        return all((_find(line, path) or [None])[0] == value for path, value in self.when.items())


@dataclasses.dataclass(frozen=True)
class Template:
    """How a known tool is called, as a shell would read it, and what its lines mean; without `lines` it prints plain text."""

    display_name: str
    command: str = ""
    lines: tuple[Rule, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as its arguments."""
        return tuple(shlex.split(self.command))


# Source: Claude Code's documentation, "CLI reference" and "Run Claude Code programmatically" (code.claude.com/docs), and "Agent
# SDK reference" for the messages. An event within is one of the Messages API. The whole messages that come beside the events
# (`assistant`) are read for their `error` alone: in a failure their text is the tool's own.
_CLAUDE = (
    Rule(
        when={"type": "stream_event", "parent_tool_use_id": None, "event.type": "content_block_start"},
        tool="event.content_block.name",
        paragraph=True,
    ),
    Rule(
        when={"type": "stream_event", "parent_tool_use_id": None},
        text="event.delta.text",
        thought="event.delta.thinking",
        finish="event.delta.stop_reason",
    ),
    Rule(when={"type": "assistant"}, error="error"),
    Rule(
        when={"type": "result", "subtype": "success", "is_error": False},
        ends=True,
        answer="result",
        prompt_tokens=(
            "usage.input_tokens",
            "usage.cache_creation_input_tokens",
            "usage.cache_read_input_tokens",
        ),
        cached_prompt_tokens=("usage.cache_read_input_tokens",),
        completion_tokens=("usage.output_tokens",),
    ),
    Rule(when={"type": "result"}, fails=True),
)
# Source: Codex's documentation, "Non-interactive mode" (developers.openai.com/codex), and docs/exec.md in its repository. A line
# of the type "error" is no end: it also tells of attempts that are repeated.
_CODEX = (
    Rule(when={"type": "item.completed", "item.type": "agent_message"}, paragraph=True, text="item.text"),
    Rule(when={"type": "item.completed", "item.type": "reasoning"}, paragraph=True, thought="item.text"),
    Rule(when={"type": "item.started", "item.type": "command_execution"}, tool="item.type"),
    Rule(when={"type": "item.started", "item.type": "mcp_tool_call"}, tool="item.tool"),
    Rule(when={"type": "item.started", "item.type": "web_search"}, tool="item.type"),
    Rule(
        when={"type": "turn.completed"},
        ends=True,
        prompt_tokens=("usage.input_tokens",),
        cached_prompt_tokens=("usage.cached_input_tokens",),
        completion_tokens=("usage.output_tokens",),
    ),
    Rule(when={"type": "turn.failed"}, fails=True),
)
# Source: Gemini CLI's documentation, "Headless mode reference" (geminicli.com/docs/cli/headless). A line of the type "error" is a
# warning.
_GEMINI = (
    Rule(when={"type": "message", "role": "assistant"}, text="content"),
    Rule(when={"type": "tool_use"}, tool="tool_name", paragraph=True),
    Rule(
        when={"type": "result", "status": "success"},
        ends=True,
        prompt_tokens=("stats.input_tokens",),
        cached_prompt_tokens=("stats.cached",),
        completion_tokens=("stats.output_tokens",),
    ),
    Rule(when={"type": "result"}, error="error.type", fails=True),
)

TEMPLATES: Mapping[str, Template] = {
    # Without tools, without the operator's servers of tools, and without a trace on the disk: a model and nothing else.
    "claude": Template(
        "Claude Code",
        "claude -p --output-format stream-json --verbose --include-partial-messages --no-session-persistence"
        " --strict-mcp-config --tools '' --model {model} --system-prompt={system}",
        _CLAUDE,
    ),
    "codex": Template(
        "Codex", "codex exec --json --skip-git-repo-check --sandbox read-only --model {model} -", _CODEX
    ),
    "gemini": Template("Gemini CLI", "gemini --output-format stream-json --model {model}", _GEMINI),
    # Source: Ollama's documentation, "CLI reference" (docs.ollama.com/cli), and "Thinking" for `--hidethinking`.
    "ollama": Template("Ollama", "ollama run --hidethinking --nowordwrap {model}"),
    # Source: LLM's documentation, "CLI reference" (llm.datasette.io/en/stable/help.html).
    "llm": Template("LLM", "llm prompt --no-log --model {model} --system={system}"),
}


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`argv` is the command, given to the system as it is; `template` is how a known one is called.

    In its arguments "{model}", "{system}" and "{prompt}" stand for these texts. Without "{prompt}" the prompt goes to standard
    input, which is the better place: it has room for every prompt, and other users of the machine do not see it. Without
    "{system}" the system's text goes before the prompt; where a request has none, an argument with "{system}" is left out, and if
    that is all of it, the option before it too. A text at the beginning of an argument never becomes an option: one that begins
    with "-" gets a space before it, unless the argument "--" came before.

    `environment` and the names of `pass_environment` come beside `KEPT_ENVIRONMENT`; a key belongs to the latter. `lines` says
    what "json-lines" mean. `stop_seconds` is the time between asking a command to end and making it.
    """

    template: str = ""
    argv: tuple[str, ...] = ()
    format: Literal["", "text", "json-lines"] = ""
    lines: tuple[Rule, ...] = ()
    environment: dict[str, str] = {}
    pass_environment: tuple[str, ...] = ()
    cwd: str = ""
    max_output_bytes: Annotated[int, msgspec.Meta(ge=1)] = 16 << 20
    max_processes: Annotated[int, msgspec.Meta(ge=1)] = 4
    stop_seconds: Positive = 2.0


class Command(Provider):
    """See the module. The answer is over when the command has ended with exit code 0, after the line that says so."""

    Options = Options
    supported = frozenset({"chat", "prompt"})

    def __init__(self, id: str, settings: BackendSettings) -> None:
        super().__init__(id, settings)
        assert isinstance(self.options, Options), "of this class"
        self._own: Options = self.options
        where = f"backends.{id}.options"
        for name in _FOREIGN:
            if getattr(settings, name):
                raise ConfigError(f"{name}: a command has none; it finds a key with {where}.pass_environment")
        if self._own.template and self._own.template not in TEMPLATES:
            raise unknown_value(f"{where}.template", self._own.template, TEMPLATES)
        template = TEMPLATES.get(self._own.template, Template("Command"))
        self.display_name = settings.display_name or template.display_name
        self._argv = self._own.argv or template.argv
        self._lines = _lines(self._own, template, where)
        _check_argv(self._argv, settings, where)
        self._environment = _environment(self._own, where)
        self.capabilities = models_pb2.Capabilities(
            prompt=True, chat=True, reasoning=any(rule.thought or rule.tool for rule in self._lines)
        )
        self._running: set[_Process] = set()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} | processes {len(self._running)}>"

    async def answer(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """See `Provider.answer`. Whichever way it ends, no process of the run is left."""
        argv, prompt = self._filled(request, model)
        if len(self._running) >= self._own.max_processes:
            raise errors.QueueFull(
                "as many commands run as the operator allows",
                metadata={"model": request.model, "queueCapacity": "0"},
                retry_delay_seconds=BUSY_SECONDS,
            )
        max_bytes, idle_seconds = self._own.max_output_bytes, self.settings.idle_seconds
        parser = _LinesParser(self._lines, max_bytes) if self._lines else _TextParser()
        num_bytes = 0
        process = _Process()
        self._running.add(process)
        try:
            await process.start(argv, prompt, environment=self._environment, cwd=self._own.cwd or None)
            while (data := await process.read(idle_seconds)) is not None:
                num_bytes += len(data)
                if num_bytes > max_bytes:
                    raise broken(f"more than {max_bytes} bytes")
                for event in parser.feed(data):
                    yield event
            await process.succeed(idle_seconds)
            for event in parser.close():
                yield event
        finally:
            try:
                await process.close(self._own.stop_seconds)
            finally:
                self._running.discard(process)
        yield pb.StreamCompleteResponse(completion=parser.completion)

    async def check(self) -> None:
        """Looks whether the command is there. Running it is not cheap, and may cost money."""
        if missing := self._missing():
            raise _cannot_start(missing)

    async def close(self) -> None:
        """Ends what still runs."""
        await asyncio.gather(*(process.close(self._own.stop_seconds) for process in self._running))

    def _missing(self) -> str:
        """Returns what a run would not find; empty when it would find everything."""
        program, cwd = self._argv[0], pathlib.Path(self._own.cwd).absolute()
        if not cwd.is_dir():
            return f"no directory {cwd}"
        # Of a name without a slash the PATH decides, of any other the directory in which the command is started.
        path = str(cwd / program) if os.sep in program else program
        found = shutil.which(path, path=self._environment.get("PATH", os.defpath))
        return "" if found else f"no command {program}"

    def _filled(self, request: pb.CompleteRequest, model: str) -> tuple[list[str], str | None]:
        """Returns the arguments, and what goes to standard input. Raises errors.ServingError for what cannot be said."""
        if model.startswith("-"):
            raise errors.UpstreamModelNotFound(
                "the provider has no such model", detail="it looks like an option"
            )
        field = request.WhichOneof("input") or ""
        system, prompt = conversation(request.chat) if field == "chat" else ("", request.prompt)
        if system and not _names(self._argv, "system"):
            system, prompt = "", f"{system}\n\n{prompt}"
        argv = fill(self._argv, {"model": model, "system": system, "prompt": prompt})
        if any("\0" in argument for argument in argv):
            raise errors.UnsupportedByBackend(
                "the backend cannot honour a field of the request",
                metadata={"model": request.model, "backend": self.id},
                violations=[(field, "an argument of a command cannot hold the character U+0000")],
            )
        return argv, None if _names(self._argv, "prompt") else prompt


def fill(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Returns the arguments with the texts in their places; see `Options`. What a text holds is never read as a placeholder."""
    filled: list[str] = []
    for argument in argv:
        if "{system}" in argument and not values["system"]:
            if argument == "{system}" and filled[-1].startswith("-") and filled[-1] != "--":
                filled.pop()
            continue
        text = _PLACEHOLDER.sub(lambda match: values[match[1]], argument)
        if text.startswith("-") and not argument.startswith("-") and "--" not in filled:
            text = f" {text}"
        filled.append(text)
    return filled


def conversation(chat: pb.Chat) -> tuple[str, str]:
    """Returns the system's text and the prompt of a chat.

    One question is its text and nothing else. Any other chat is paragraphs, "User: ..." and "Assistant: ...", for a tool's use
    'Assistant calls NAME: {...}' and "Result of NAME: ..." or "Error of NAME: ...", and at the end "Assistant:". Earlier thoughts
    are left out. Nothing is escaped: an author who writes "Assistant: ..." into a message can feign a turn.
    """
    system = "\n\n".join(_text(message) for message in chat.messages if message.role == pb.ROLE_SYSTEM)
    turns = [message for message in chat.messages if message.role != pb.ROLE_SYSTEM]
    if [message.role for message in turns] == [pb.ROLE_USER]:
        return system, _text(turns[0])
    tools: dict[str, str] = {}
    paragraphs: list[str] = []
    for message in turns:
        if text := _text(message):
            paragraphs.append(f"{'User' if message.role == pb.ROLE_USER else 'Assistant'}: {text}")
        for part in message.parts:
            if part.HasField("tool_call"):
                call = part.tool_call
                tools[call.id] = call.name
                paragraphs.append(f"Assistant calls {call.name}: {call.arguments}")
            elif part.HasField("tool_result"):
                result = part.tool_result
                what = "Error" if result.is_error else "Result"
                paragraphs.append(f"{what} of {tools.get(result.call_id, result.call_id)}: {result.text}")
    return system, "\n\n".join([*paragraphs, "Assistant:"])


def _text(message: pb.Message) -> str:
    return "".join(part.text for part in message.parts)


# The configuration.


def _lines(options: Options, template: Template, where: str) -> tuple[Rule, ...]:
    """Returns the rules of lines, none for plain text."""
    lines = options.lines or template.lines
    if options.lines and options.format == "text":
        raise ConfigError(f"{where}.lines: plain text has none")
    if options.format == "json-lines" and not lines:
        raise ConfigError(f"{where}.lines: must be set, or {where}.template")
    return () if options.format == "text" else lines


def _check_argv(argv: Sequence[str], settings: BackendSettings, where: str) -> None:
    where = f"{where}.argv"
    if not argv or not argv[0]:
        raise ConfigError(f"{where}: must name a command")
    if any("\0" in argument for argument in argv):
        raise ConfigError(f"{where}: an argument cannot hold the character U+0000")
    if _PLACEHOLDER.search(argv[0]):
        raise ConfigError(f"{where}: the command itself cannot be left to callers")
    if pathlib.PurePath(argv[0]).name in _SHELLS:
        for option, program in itertools.pairwise(argv):
            if re.fullmatch(r"-\w*c", option) and _PLACEHOLDER.search(program):
                raise ConfigError(
                    f'{where}: a shell would run what callers write; use "$1" and give it behind'
                )
    if not _names(argv, "model") and (len(settings.models) > 1 or settings.allow_unlisted):
        raise ConfigError(f"{where}: with more than one model it needs {{model}}")


def _environment(options: Options, where: str) -> dict[str, str]:
    for name, value in options.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise ConfigError(f"{where}.environment: {name!r} is no name of a variable, or its value no text")
    for name in options.pass_environment:
        if name not in os.environ:
            raise ConfigError(f"{where}.pass_environment: the environment has no {name}")
    kept = (*KEPT_ENVIRONMENT, *options.pass_environment)
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **options.environment}


def _names(argv: Iterable[str], placeholder: str) -> bool:
    return any(f"{{{placeholder}}}" in argument for argument in argv)


# What a command says.


class _TextParser(AnswerParser):
    """Plain text. As a shell's $(...) does, it leaves out the line ends at the end, so they wait for more text."""

    def __init__(self) -> None:
        super().__init__()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line_ends = ""

    def _feed(self, data: bytes) -> None:
        self._add(self._decoder.decode(data))

    def _close(self) -> None:
        self._add(self._decoder.decode(b"", final=True))
        self._complete(pb.FINISH_REASON_STOP)

    def _add(self, text: str) -> None:
        if body := text.rstrip("\r\n"):
            self.deltas.text(self._line_ends + body)
            self._line_ends = ""
        self._line_ends += text[len(body) :]


class _LinesParser(AnswerParser):
    """Lines of JSON objects, as rules say. A line that begins otherwise is chatter of the tool, and is skipped."""

    def __init__(self, rules: Sequence[Rule], max_bytes: int) -> None:
        super().__init__()
        self._reader = LineReader(max_bytes)
        self._rules = rules
        self._text = _Paragraphs()
        self._thought = _Paragraphs()
        self._finish = ""
        self._error = ""
        self._usage = pb.Usage()

    def _feed(self, data: bytes) -> None:
        for line in self._reader.feed(data):
            self._take(line)

    def _close(self) -> None:
        self._take(self._reader.close())
        if self.completion is None and not any(rule.ends for rule in self._rules):
            # The command's own end is all that it has of one.
            self._end()

    def _take(self, line: bytes) -> None:
        if self.completion is not None or not line.lstrip().startswith(b"{"):
            return
        try:
            value: object = msgspec.json.decode(line)
        except (RecursionError, UnicodeDecodeError) as error:
            raise broken(f"a line that cannot be read: {type(error).__name__}") from None
        says_something = False
        for rule in self._rules:
            if rule.fits(value):
                says_something = True
                self._apply(rule, value)
                if rule.ends:
                    break
        self._count_idle(is_idle=not says_something)

    def _apply(self, rule: Rule, line: object) -> None:
        if rule.paragraph:
            self._text.begin()
            self._thought.begin()
        for name in _strings(line, rule.tool):
            self._thought.begin()
            self.deltas.reasoning(self._thought.add(f"[tool: {name}]"))
            self._thought.begin()
        self.deltas.reasoning(self._thought.add("".join(_strings(line, rule.thought))))
        self.deltas.text(self._text.add("".join(_strings(line, rule.text))))
        self._finish = next(iter(_strings(line, rule.finish)), self._finish)
        self._error = next(iter(_strings(line, rule.error)), self._error)
        for field in ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens"):
            if paths := getattr(rule, field):
                setattr(self._usage, field, min(sum(_count(line, path) for path in paths), _MAX_COUNT))
        if rule.fails:
            raise failure(Refusal(_STATUSES.get(self._error, 503), self._error))
        if rule.ends:
            if not self._text.is_begun:
                self.deltas.text("".join(_strings(line, rule.answer)))
            self._end()

    def _end(self) -> None:
        reason = _FINISHES.get(self._finish.lower(), pb.FINISH_REASON_OTHER)
        self._complete(reason, self._finish, self._usage)


class _Paragraphs:
    """Text in pieces, some of which stand apart from what came before."""

    def __init__(self) -> None:
        self.is_begun = False
        self._is_apart = False

    def begin(self) -> None:
        """Says that the next piece stands apart."""
        self._is_apart = self.is_begun

    def add(self, piece: str) -> str:
        """Returns a piece with what stands before it."""
        if not piece:
            return ""
        if self._is_apart:
            piece = f"\n\n{piece}"
        self.is_begun, self._is_apart = True, False
        return piece


_FINISHES = {
    "": pb.FINISH_REASON_STOP,
    "end_turn": pb.FINISH_REASON_STOP,
    "stop": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "max_tokens": pb.FINISH_REASON_LENGTH,
    "length": pb.FINISH_REASON_LENGTH,
    "refusal": pb.FINISH_REASON_CONTENT_FILTER,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}
# The words of the tools for a failure, and the status of HTTP that stands for it.
_STATUSES = {
    # Claude Code.
    "authentication_failed": 401,
    "billing_error": 403,
    "rate_limit": 429,
    "invalid_request": 400,
    # Gemini CLI.
    "FatalAuthenticationError": 401,
    "FatalInputError": 400,
}


def _find(line: object, path: str) -> list[object]:
    """Returns what a path leads to; see `Rule`."""
    found = [line] if path else []
    for name in path.split("."):
        key = name.removesuffix("[]")
        found = [value[key] for value in found if isinstance(value, dict) and key in value]
        if key != name:
            found = [element for value in found if isinstance(value, list) for element in value]
    return found


def _strings(line: object, path: str) -> list[str]:
    return [value for value in _find(line, path) if isinstance(value, str) and value]


def _count(line: object, path: str) -> int:
    return sum(value for value in _find(line, path) if type(value) is int and value > 0)


# The process.


class _Process(asyncio.SubprocessProtocol):
    """One run of a command: the process and whatever it starts, as far as that stays in its group.

    `start`, `read` until None, `succeed`; and `close` whatever happened. asyncio's own Process is of no use here: up to Python
    3.12 its `wait` waits for the pipes too, which a grandchild may hold open for ever.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._prompt: bytes | None = None
        self._held = bytearray()
        self._news = asyncio.Event()
        self._exited: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._num_stderr_bytes = 0
        self._is_output_over = False
        self._is_closing = False

    def __repr__(self) -> str:
        pid = self._transport.get_pid() if self._transport else None
        state = "gone" if self._gone.done() else "exited" if self._exited.done() else "running"
        return f"<_Process {pid} [{state} | {len(self._held)} bytes held]>"

    async def start(
        self, argv: Sequence[str], prompt: str | None, *, environment: Mapping[str, str], cwd: str | None
    ) -> None:
        """Starts the command. Raises errors.UpstreamUnavailable or errors.PromptTooLarge."""
        self._prompt = None if prompt is None else prompt.encode()
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                # As UTF-8, whatever the server's locale is.
                *(argument.encode() for argument in argv),
                stdin=subprocess.DEVNULL if prompt is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise errors.PromptTooLarge("the text has no room among a command's arguments") from None
            raise _cannot_start(errno.errorcode.get(error.errno or 0, type(error).__name__)) from None

    async def read(self, idle_seconds: float) -> bytes | None:
        """Returns what it has written to standard output, None at the end. Raises errors.UpstreamStalled."""
        while not self._held:
            if self._is_output_over:
                return None
            is_over = self._exited.done()
            self._news.clear()
            try:
                async with asyncio.timeout(DRAIN_SECONDS if is_over else idle_seconds):
                    await self._news.wait()
            except TimeoutError:
                if is_over:
                    return None
                raise _stalled() from None
        data = bytes(self._held)
        self._held.clear()
        self._read_on()
        return data

    async def succeed(self, idle_seconds: float) -> None:
        """Waits for the end. Raises errors.UpstreamUnavailable for one that is no success, errors.UpstreamStalled for none."""
        await asyncio.wait([self._exited], timeout=idle_seconds)
        if not self._exited.done():
            raise _stalled()
        assert self._transport is not None, "ended before it was started"
        code = self._transport.get_returncode() or 0
        if code:
            # What is left in the pipe of standard error is counted.
            await asyncio.wait([self._gone], timeout=DRAIN_SECONDS)
            end = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise errors.UpstreamUnavailable(
                "the backend's command failed",
                detail=f"{end}, {self._num_stderr_bytes} bytes on standard error",
            )

    async def close(self, stop_seconds: float) -> None:
        """Ends the group: with SIGTERM, and after a time with SIGKILL. Whoever cancels this gets SIGKILL at once."""
        self._is_closing = True
        if self._transport is None:
            return
        if not self._exited.done():
            # It may have to write before it can end.
            self._read_on()
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait([self._exited], timeout=stop_seconds)
            finally:
                if not self._exited.done():
                    self._signal(signal.SIGKILL)
            await asyncio.wait([self._exited])
        self._close_pipes()
        await asyncio.wait([self._gone])

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Gives the prompt to the transport, which writes as fast as the command reads."""
        assert isinstance(transport, asyncio.SubprocessTransport), "of a process"
        self._transport = transport
        stdin = transport.get_pipe_transport(0)
        if self._prompt is not None and isinstance(stdin, asyncio.WriteTransport):
            stdin.write(self._prompt)
            stdin.write_eof()
            self._prompt = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Keeps what comes on standard output and counts the rest."""
        if fd == 2:
            self._num_stderr_bytes += len(data)
        elif not self._is_closing:
            self._held += data
            self._news.set()
            stdout = self._stdout()
            if stdout is not None and len(self._held) > MAX_HELD_BYTES:
                stdout.pause_reading()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Notes the end of standard output."""
        if fd == 1:
            self._is_output_over = True
            self._news.set()

    def process_exited(self) -> None:
        """Ends whatever the command has started and left behind."""
        # The number of the group may be given away again, but not so soon.
        self._signal(signal.SIGKILL)
        self._exited.set_result(None)
        self._news.set()
        if self._is_closing:
            # Also when nobody waits in `close` any more.
            self._close_pipes()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes that the process has ended and every pipe is closed."""
        self._gone.set_result(None)

    def _signal(self, number: signal.Signals) -> None:
        assert self._transport is not None, "signalled before it was started"
        # macOS says that it is not permitted where there is nobody left but zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), number)

    def _close_pipes(self) -> None:
        assert self._transport is not None, "closed before it was started"
        stdin = self._transport.get_pipe_transport(0)
        # Only while it holds something it waits for a reader; otherwise it is closed, or about to be.
        if isinstance(stdin, asyncio.WriteTransport) and stdin.get_write_buffer_size():
            stdin.abort()
        self._transport.close()

    def _read_on(self) -> None:
        if (stdout := self._stdout()) is not None:
            stdout.resume_reading()

    def _stdout(self) -> asyncio.ReadTransport | None:
        stdout = self._transport.get_pipe_transport(1) if self._transport else None
        return stdout if isinstance(stdout, asyncio.ReadTransport) else None


def _stalled() -> errors.UpstreamStalled:
    return errors.UpstreamStalled("the provider sent nothing for too long")


def _cannot_start(detail: str) -> errors.UpstreamUnavailable:
    return errors.UpstreamUnavailable("the backend's command cannot be started", detail=detail)
