"""Settings of the whole suite."""

from __future__ import annotations

import signal

import hypothesis

from inferwire_server import logs

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start what runs in the background with Ctrl-C ignored, and children inherit that; a terminal's do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Warnings and errors of the server under test, so that a failing test shows them and nothing drowns them.
logs.configure(format="text", level="warning")

# No example is late: a busy machine must not fail a property. What fails is printed so that it can be replayed.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")
