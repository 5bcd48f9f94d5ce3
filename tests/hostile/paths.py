"""Paths of model files that lead where they must not, or nowhere."""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def plant(base: Path) -> Path:
    """Returns a model root in `base` with a little of everything, and puts beside it what must stay out of reach."""
    (base / "secret.gguf").write_bytes(b"secret")
    (base / "outside").mkdir()
    (base / "outside/model.gguf").write_bytes(b"secret")
    root = base / "root"
    (root / "sub/deep").mkdir(parents=True)
    (root / "model.gguf").write_bytes(b"GGUF")
    (root / "sub/deep/model.gguf").write_bytes(b"deep")
    (root / "modèle 🦙.gguf").write_bytes(b"odd")
    (root / "empty.gguf").touch()
    (root / "link.gguf").symlink_to(root / "model.gguf")
    (root / "out.gguf").symlink_to(base / "secret.gguf")
    (root / "dangling.gguf").symlink_to(base / "nothing")
    (root / "loop.gguf").symlink_to("loop.gguf")
    (root / "linked").symlink_to(base / "outside")
    (root / "sub/linked").symlink_to("../../outside")
    (root / "etc").symlink_to("/etc")
    os.mkfifo(root / "pipe.gguf")
    return root


NOT_ALLOWED = [
    "", ".", "./", "/", "..", "../secret.gguf", "sub/../../secret.gguf", "sub/../model.gguf", "sub/..",
    "/etc/passwd", "//etc/passwd", "model.gguf\0", "\0", "../root/model.gguf", "sub/deep/../../../secret.gguf",
    "a" * 1025, "sub/" * 300 + "model.gguf",
]  # fmt: skip
LINKS = [
    "link.gguf", "out.gguf", "dangling.gguf", "loop.gguf", "linked", "linked/model.gguf", "linked/nothing.gguf",
    "sub/linked/model.gguf", "etc/passwd", "etc/nothing", "sub/linked",
]  # fmt: skip
NO_FILES = [
    "nothing.gguf", "sub", "sub/deep", "sub/nothing/model.gguf", "pipe.gguf", "pipe.gguf/x", "model.gguf/x",
    "a" * 1000, "sub/" + "é" * 500, "...", "..gguf", "~", "$HOME", "*", "sub\\deep\\model.gguf", "MODEL.GGUF\n",
    "\u202egguf.ledom", "model\u2024gguf", "\udc80", "C:\\model.gguf", "file:///etc/passwd", "%2e%2e/secret.gguf",
]  # fmt: skip
# Two names that differ only in whether there is something where they lead, and must be told the same.
TWINS = [
    ("../secret.gguf", "../nothing.gguf"),
    ("../outside/model.gguf", "../outside/nothing.gguf"),
    ("sub/../../secret.gguf", "sub/../../nothing.gguf"),
    ("/etc/passwd", "/etc/nothing"),
    ("out.gguf", "dangling.gguf"),
    ("linked/model.gguf", "linked/nothing.gguf"),
    ("sub/linked/model.gguf", "sub/linked/nothing.gguf"),
    ("etc/passwd", "etc/nothing"),
]


def payloads() -> list[str]:
    """Returns all of these and more: ways up, from several places, to several files, written in several ways."""
    ups = [
        "..",
        "../..",
        "../../..",
        "sub/../..",
        "sub/deep/../../..",
        "./..",
        ".//..",
        "linked/..",
        "sub/linked/../..",
    ]
    targets = ["secret.gguf", "outside/model.gguf", "etc/passwd", "proc/self/environ", "root/model.gguf"]
    ways = [f"{up}/{target}" for up, target in itertools.product(ups, targets)]
    odd = [
        way.replace("..", dots)
        for way in ways[:24]
        for dots in ("%2e%2e", "..%00", "\uff0e\uff0e", "..\\", ". .")
    ]
    twins = [name for pair in TWINS for name in pair]
    return list(dict.fromkeys([*NOT_ALLOWED, *LINKS, *NO_FILES, *twins, *ways, *odd]))
