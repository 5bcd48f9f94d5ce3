"""What the log must never hold: what a caller wrote, and keys."""

from __future__ import annotations

import logging

import pytest
import structlog

from inferwire_server import logs


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_told_without_the_values_of_variables(format, capsys, monkeypatch):
    """A traceback names lines and types; the prompt that a function held when it failed is not in it."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure(format=format, level="info")
        _fail("canary-prompt")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logs.configure(format="text", level="warning")
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert "test_logs" in told
    assert "canary" not in told


def _fail(prompt: str) -> None:
    try:
        len(prompt) / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("internal_error")


@pytest.mark.parametrize("name", ["httpx", "httpcore"])
def test_the_http_library_is_quiet_at_every_level(name):
    """At lower levels it prints headers, the key among them."""
    try:
        logs.configure(format="text", level="debug")
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert not logging.getLogger(f"{name}.http11").isEnabledFor(logging.DEBUG)
    finally:
        logs.configure(format="text", level="warning")
