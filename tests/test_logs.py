"""What the log must never hold: what a caller wrote, and keys."""

from __future__ import annotations

import ast
import asyncio
import gc
import logging
import pathlib
from collections.abc import Callable, Iterator

import pytest
import structlog

import inferwire_server
from inferwire_server import logs


@pytest.fixture
def configured(capsys):
    """Configures the log, and returns what was written since; puts everything back."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def configured(**settings) -> Callable[[], str]:
        logs.configure(**{"level": "debug", **settings})
        return lambda: capsys.readouterr().err

    yield configured
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    logs.configure(format="text", level="warning")


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("log_prompts", [False, True])
def test_an_exception_is_told_without_its_words(format, log_prompts, configured):
    """A traceback names lines and types; neither what the exception says, nor its cause, nor the values of variables."""
    told = configured(format=format, log_prompts=log_prompts)
    _fail("canary-prompt")
    _fail_in_a_library("canary-prompt")
    text = told()
    for name in ("ZeroDivisionError", "KeyError", "ValueError", "ExceptionGroup"):
        assert name in text
    assert "test_logs" in text
    assert log_prompts == ("canary" in text)


def _fail(prompt: str) -> None:
    try:
        _divide(prompt)
    except ExceptionGroup:
        structlog.get_logger().exception("internal_error")


def _fail_in_a_library(prompt: str) -> None:
    try:
        _divide(prompt)
    except ExceptionGroup:
        logging.getLogger("library").exception("failed")


def _divide(prompt: str) -> None:
    try:
        len(prompt) / 0
    except ZeroDivisionError as error:
        try:
            raise KeyError(prompt) from error
        except KeyError as caused:
            raise ExceptionGroup(prompt, [caused, ValueError(prompt)]) from None


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_field_that_is_not_listed_is_dropped(format, log_prompts, configured):
    """So that what nobody thought of is not told; prompts are only where the operator asks for them."""
    told = configured(format=format, log_prompts=log_prompts)
    structlog.get_logger().info("rpc", model="demo", prompt="canary-prompt", body="canary-body")
    text = told()
    assert "demo" in text
    assert log_prompts == ("canary-prompt" in text)
    assert "canary-body" not in text


async def test_an_exception_that_nobody_took_is_told_without_its_words(configured):
    """asyncio prints it in its message."""
    told = configured(format="text")

    async def fail(prompt: str) -> None:
        raise ValueError(prompt)

    task = asyncio.create_task(fail("canary"))
    await asyncio.wait([task])
    del task
    gc.collect()
    text = told()
    assert "Task exception was never retrieved" in text
    assert "ValueError" in text
    assert "canary" not in text


def fields_in_the_code() -> Iterator[tuple[str, str]]:
    """Yields every field that the code logs, with where."""
    package = pathlib.Path(inferwire_server.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if owner == "log" or (owner == "context" and node.func.attr == "note"):
                yield from ((word.arg, f"{path.name}:{node.lineno}") for word in node.keywords if word.arg)


def test_every_field_of_the_code_is_listed():
    """What the code logs is told."""
    named = {field: where for field, where in fields_in_the_code() if field != "exc_info"}
    assert {} == {
        field: where for field, where in named.items() if field not in logs.FIELDS | logs.PROMPT_FIELDS
    }


@pytest.mark.parametrize("name", ["httpx", "httpcore"])
def test_the_http_library_is_quiet_at_every_level(name):
    """At lower levels it prints headers, the key among them."""
    try:
        logs.configure(format="text", level="debug")
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert not logging.getLogger(f"{name}.http11").isEnabledFor(logging.DEBUG)
    finally:
        logs.configure(format="text", level="warning")
