"""Settings of the whole suite."""

from __future__ import annotations

import hypothesis

from inferwire_server import logs

# Warnings and errors of the server under test, so that a failing test shows them and nothing drowns them.
logs.configure(format="text", level="warning")

# No example is late: a busy machine must not fail a property. What fails is printed so that it can be replayed.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")
