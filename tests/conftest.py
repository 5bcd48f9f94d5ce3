"""Settings of the whole suite."""

from __future__ import annotations

from inferwire_server import logs

# Warnings and errors of the server under test, so that a failing test shows them and nothing drowns them.
logs.configure(format="text", level="warning")
