"""Ctrl-C and Ctrl-D: commands as real processes, chat on a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc
import pytest

from inferwire.chat import assistant, user
from inferwire.v1 import inference_pb2 as inference
from inferwire.v1 import models_pb2 as models
from tests.client.scripted import Hang, Refusal, ScriptedServer, answer, completion, started, text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")

PATIENCE_SECONDS = 30.0


class Terminal:
    """A command on a pseudo-terminal, as a person sees it."""

    def __init__(self, *arguments: str, kind: str = "dumb") -> None:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": kind, "PYTHONFAULTHANDLER": "1"},
        )
        os.close(slave)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read_until(self, expected: str) -> str:
        """Returns what is shown up to and with `expected`; what comes after stays unread."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (end := self._unread.find(expected.encode())) < 0:
            readable, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{expected!r} did not come, only {self._unread!r}"
            self._unread += os.read(self._master, 4096)
        end += len(expected.encode())
        shown, self._unread = self._unread[:end], self._unread[end:]
        return shown.decode()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def interrupt_until_it_ends(self) -> int:
        """Presses Ctrl-C at a prompt, and again where the terminal's line reader was not yet waiting for it."""
        for _ in range(6):
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(5)
        # Makes it say what it does.
        self._process.send_signal(signal.SIGABRT)
        raise AssertionError(f"it does not end:\n{self._rest()}")

    def _rest(self) -> str:
        """Returns what is shown within a second."""
        shown = self._unread
        while select.select([self._master], [], [], 1)[0]:
            try:
                shown += os.read(self._master, 4096)
            except OSError:  # nobody has the terminal any more
                break
        return shown.decode(errors="replace")

    def exit_code(self) -> int:
        return self._process.wait(PATIENCE_SECONDS)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "inferwire_server.cli", *arguments]


class TestChat:
    def test_ctrl_c_ends_the_answer_and_keeps_the_session(self, server: ScriptedServer) -> None:
        """The first Ctrl-C cancels the generation at the server; what came of the answer stays in the conversation."""
        hang = Hang()
        server.streams = [[started(), text("partial"), hang], answer("fine")]
        with Terminal("chat", "--address", server.address) as terminal:
            terminal.read_until("> ")
            terminal.type("one\n")
            terminal.read_until("partial")
            terminal.interrupt()
            terminal.read_until("(cancelled)")
            terminal.read_until("> ")
            assert hang.gone.wait(PATIENCE_SECONDS)
            terminal.type("two\n")
            terminal.read_until("fine")
            terminal.read_until("> ")
            assert 0 == terminal.interrupt_until_it_ends()
        [_, second] = server.requests_of("StreamComplete")
        assert isinstance(second, inference.CompleteRequest)
        assert [user("one"), assistant("partial"), user("two")] == list(second.chat.messages)

    def test_a_turn_without_an_answer_leaves_nothing(self, server: ScriptedServer) -> None:
        """A failure is shown and the session goes on, as if the turn had not been."""
        server.streams = [[Refusal(grpc.StatusCode.NOT_FOUND, "gone", "MODEL_NOT_FOUND")], answer("fine")]
        with Terminal("chat", "--address", server.address) as terminal:
            terminal.read_until("> ")
            terminal.type("one\n")
            assert "`inferwire models` lists the names." in terminal.read_until("names.")
            terminal.read_until("> ")
            terminal.type("two\n")
            terminal.read_until("fine")
        [_, second] = server.requests_of("StreamComplete")
        assert isinstance(second, inference.CompleteRequest)
        assert [user("two")] == list(second.chat.messages)

    @pytest.mark.parametrize("keys", ["\x04", "/quit\n"], ids=["ctrl-d", "quit"])
    def test_leaves(self, server: ScriptedServer, keys: str) -> None:
        """Ctrl-D and /quit leave with exit code 0."""
        with Terminal("chat", "--address", server.address) as terminal:
            terminal.read_until("> ")
            terminal.type(keys)
            assert 0 == terminal.exit_code()

    def test_the_model_does_not_steer_the_terminal(self, server: ScriptedServer) -> None:
        """Control characters in an answer are shown, not obeyed; thoughts are dimmed."""
        thought = inference.StreamCompleteResponse(reasoning=inference.ReasoningDelta(text="hm"))
        server.streams = [[started(), thought, text("a\x1b[2Jz"), completion()]]
        with Terminal("chat", "--address", server.address) as terminal:
            terminal.read_until("> ")
            terminal.type("one\n")
            shown = terminal.read_until("z")
        assert "\x1b[2mhm\x1b[0m" in shown
        assert "\x1b[2J" not in shown


@pytest.fixture
def hang(server: ScriptedServer) -> Iterator[Hang]:
    hang = Hang()
    server.streams = [[started(), text("partial"), hang]]
    server.loads = [[models.StreamLoadResponse(progress=models.LoadProgress(fraction=0.5)), hang]]
    yield hang
    hang.gone.set()


def test_ctrl_c_of_a_completion_is_130(server: ScriptedServer, hang: Hang) -> None:
    """Ctrl-C ends the command without a traceback, and the generation with it."""
    with subprocess.Popen(
        command("complete", "--address", server.address, "Hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"partial" == process.stdout.read(7)
        process.send_signal(signal.SIGINT)
        assert b"Interrupted.\n" == process.stderr.read()
        assert 130 == process.wait(PATIENCE_SECONDS)
    assert hang.gone.wait(PATIENCE_SECONDS)


def test_ctrl_c_of_a_watch_is_130(server: ScriptedServer) -> None:
    """A watch has no end of its own: Ctrl-C is the way out, and the table stays as it last was."""
    hang = Hang()
    model = models.Model(name="demo", state=models.ModelState.MODEL_STATE_READY)
    server.watches = [[inference.WatchModelsResponse(revision=1, models=[model]), hang]]
    with Terminal("models", "--watch", "--address", server.address, kind="xterm") as terminal:
        terminal.read_until("ready")
        terminal.interrupt()
        terminal.read_until("Interrupted.")
        assert 130 == terminal.exit_code()
    assert hang.gone.wait(PATIENCE_SECONDS)


def test_ctrl_c_of_a_load_says_that_it_goes_on(server: ScriptedServer, hang: Hang) -> None:
    """Who stops watching does not stop the load, so the command says what would."""
    with Terminal("load", "demo", "demo.gguf", "--address", server.address, kind="xterm") as terminal:
        terminal.read_until("50%")
        terminal.interrupt()
        terminal.read_until("`inferwire unload demo` stops it")
        assert 130 == terminal.exit_code()
    assert hang.gone.wait(PATIENCE_SECONDS)
