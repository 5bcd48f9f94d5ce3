"""`inferwire` with stub engines: the whole command line, only what it starts for a model is another program.

RIG_LAG_FILE: where the lag of its event loop is written when it has drained. RIG_BLOCKS_LOOP_SECONDS: it holds its loop up for so
long, once a second. RIG_TELLS_PROMPTS: it writes prompts into its log. RIG_LEAKS: it keeps something of every request.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import time

from inferwire_server import cli
from inferwire_server.backends.local import LocalBackend
from inferwire_server.server import Server
from inferwire_server.servicer import InferenceServicer

from . import rig, stub_engine


def watch_lag(file: pathlib.Path, blocked_seconds: float) -> None:
    """Makes servers write down how late their loop was, and how often it was held up on purpose."""
    run = Server.run

    async def block() -> None:
        while blocked_seconds:
            time.sleep(blocked_seconds)  # noqa: ASYNC251  that is what is wrong with it
            await asyncio.sleep(1)

    async def watched(self: Server, *arguments: object) -> None:
        async with rig.Lag() as lag:
            blocking = asyncio.create_task(block())
            await run(self, *arguments)
            blocking.cancel()
        file.write_text(json.dumps(lag.milliseconds))

    Server.run = watched  # type: ignore[method-assign, assignment]


def tell_prompts() -> None:
    """Makes servers log what nobody may see."""
    leased = InferenceServicer._leased

    def telling(self, request, context, *rest):
        context.note(prompt=getattr(request, "prompt", ""))
        return leased(self, request, context, *rest)

    InferenceServicer._leased = telling  # type: ignore[method-assign]


def leak() -> None:
    """Makes servers keep 64 KiB for each request."""
    leased, kept = InferenceServicer._leased, []

    def leaking(self, request, context, *rest):
        kept.append(os.urandom(64 << 10))
        return leased(self, request, context, *rest)

    InferenceServicer._leased = leaking  # type: ignore[method-assign]


if __name__ == "__main__":
    LocalBackend.command = stub_engine.COMMAND
    if file := os.environ.get("RIG_LAG_FILE"):
        watch_lag(pathlib.Path(file), float(os.environ.get("RIG_BLOCKS_LOOP_SECONDS", "0")))
    if os.environ.get("RIG_TELLS_PROMPTS"):
        tell_prompts()
    if os.environ.get("RIG_LEAKS"):
        leak()
    cli.main()
