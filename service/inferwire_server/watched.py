"""Whether files changed since they were last asked about, cheaply enough to ask every second."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable


class WatchedFiles:
    """A few files. Links are followed, so that a mounted secret, which is swapped by a link, is seen to change."""

    def __init__(self, paths: Iterable[pathlib.Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._signature()

    def __repr__(self) -> str:
        return f"<WatchedFiles [{', '.join(map(str, self._paths))}]>"

    def changed(self) -> bool:
        """Returns whether any of them is another than at the last time of asking."""
        before, self._seen = self._seen, self._signature()
        return before != self._seen

    def _signature(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(map(_stat, self._paths))


def _stat(path: pathlib.Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns
