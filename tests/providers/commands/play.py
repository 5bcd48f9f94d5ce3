"""A command that does what its arguments say, one after the other, and tells nobody but its own standard output."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

# A process that does nothing and has to be ended.
IDLE = [sys.executable, "-IS", "-c", "import signal; signal.pause()"]


def say(data: str | bytes) -> None:
    """Writes at once."""
    view = memoryview(data.encode() if isinstance(data, str) else data)
    while view:
        view = view[os.write(1, view) :]


def play(step: str, rest: list[str]) -> None:
    """Does one thing."""
    name, _, value = step.partition(":")
    match name:
        case "out":
            say(value)
        case "hex":
            say(bytes.fromhex(value))
        case "repeat":
            text, _, count = value.rpartition(":")
            say(text * int(count))
        case "err":
            os.write(2, value.encode())
        case "stdin":
            while data := os.read(0, 1 << 16):
                say(data)
        case "lines":
            # A file in pieces of any size.
            path, _, seed = value.rpartition(":")
            draw, data = random.Random(int(seed)), pathlib.Path(path).read_bytes()
            while data:
                size = draw.choice((1, 2, 7, 30, 200, 1000))
                say(data[:size])
                data = data[size:]
        case "arguments":
            say(json.dumps(rest))
            sys.exit(0)
        case "environment":
            say(json.dumps(dict(os.environ)))
        case "directory":
            say(str(pathlib.Path.cwd()))
        case "pid":
            say(f"{os.getpid()} ")
        case "spawn":
            say(f"{subprocess.Popen(IDLE).pid} ")
        case "spawn-apart":
            say(f"{subprocess.Popen(IDLE, start_new_session=True).pid} ")
        case "ignore-term":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "on-term":

            def end(*_: object) -> None:
                # More than a pipe has room for that nobody reads.
                say("x" * (1 << 20))
                pathlib.Path(value).touch()
                os._exit(0)

            signal.signal(signal.SIGTERM, end)
        case "close":
            os.close(int(value))
        case "wait":
            while True:
                signal.pause()
        case "die":
            os.kill(os.getpid(), int(value))
        case "exit":
            sys.exit(int(value))
        case _:
            raise ValueError(step)


if __name__ == "__main__":
    for index, step in enumerate(sys.argv[1:]):
        play(step, sys.argv[index + 2 :])
