"""How the server logs: structlog over the standard library, to standard error, as text or as JSON lines.

Owns what a line may hold: the fields named here and no others, and of an exception where it came from, without its words.
Only `log_prompts` lets more through: what callers wrote and what models answered. A line that cannot be written, because the
disk is full, is counted and dropped.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any, TextIO

import structlog

# Names, numbers, durations, and words of ours. A field that is not here is dropped, so that what nobody thought of is not told.
FIELDS = frozenset(
    {
        "backend", "calls", "certificates", "code", "completion_tokens", "crashes", "delay_seconds", "detail",
        "drain_seconds", "error", "error_id", "exit_code", "expires", "finish_reason", "hint", "id", "keys",
        "lame_duck_seconds", "last_lines", "line", "method", "model", "pause_seconds", "pid", "principal",
        "prompt_tokens", "reason", "restarts", "route", "seconds", "state", "streams_ended", "task", "trace_id", "version",
    }
)  # fmt: skip
# What callers wrote and were answered.
PROMPT_FIELDS = frozenset({"prompt", "completion"})
# What structlog adds itself.
_OWN_FIELDS = frozenset(
    {"event", "level", "timestamp", "exc_info", "exception", "_record", "_from_structlog"}
)

_Event = MutableMapping[str, Any]


def configure(*, format: str, level: str, log_prompts: bool = False) -> None:
    """Sets up logging for the process. `format` is "text" or "json"; `level` as in the standard library."""
    allowed = _OWN_FIELDS | FIELDS | (PROMPT_FIELDS if log_prompts else frozenset())

    def keep_allowed(logger: Any, name: str, event: _Event) -> _Event:
        return {key: value for key, value in event.items() if key in allowed}

    def render_exception(exc_info: structlog.typing.ExcInfo) -> str:
        # Without the values of local variables in any case.
        return "".join(traceback.format_exception(*exc_info)) if log_prompts else without_words(exc_info[1])

    def write_exception(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
        stream.write("\n" + render_exception(exc_info))

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Any] = (
        [structlog.processors.ExceptionRenderer(render_exception), structlog.processors.JSONRenderer()]
        if format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=write_exception
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            keep_allowed,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    if not log_prompts:
        handler.addFilter(_cut)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At lower levels two of these print headers, keys among them; the others only noise.
    for name in ("asyncio", "grpc", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def num_dropped() -> int:
    """Returns how many lines could not be written. From any thread."""
    return sum(each.num_dropped for each in logging.getLogger().handlers if isinstance(each, _Handler))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines, and counts those that the system does not take."""

    num_dropped = 0

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exception(), OSError):
            self.num_dropped += 1
        else:
            super().handleError(record)


def without_words(error: BaseException | None) -> str:
    """Returns an exception's traceback without what it says, which may quote a prompt: types, files, lines, our code."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _lines(before, seen)
        yield "before:"
    for frame in traceback.format_tb(error.__traceback__):
        yield frame.rstrip("\n")
    yield f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield "of which:"
            yield from _lines(each, seen)


def _cut(record: logging.LogRecord) -> bool:
    """Cuts asyncio's messages to their first line: on the others it prints the exception that nobody took."""
    if record.name == "asyncio":
        record.msg, record.args = record.getMessage().partition("\n")[0], None
    return True
