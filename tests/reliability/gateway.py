"""`inferwire` with stub engines: the whole command line, only what it starts for a model is another program."""

from __future__ import annotations

from inferwire_server import cli
from inferwire_server.backends.local import LocalBackend

from . import stub_engine

if __name__ == "__main__":
    LocalBackend.command = stub_engine.COMMAND
    cli.main()
