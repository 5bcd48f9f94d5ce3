"""What the machine, or the container, lets this process have."""

from __future__ import annotations

import os
import pathlib

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def num_usable_cores() -> int:
    """Returns the cores this process may use: its affinity, bounded by the container's CPU quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def available_memory_bytes() -> int | None:
    """Returns the memory that can be had without swapping, bounded by the container's limit (cgroup v2).

    None where the system does not say (not Linux).
    """
    try:
        available = 1024 * _counter(pathlib.Path("/proc/meminfo"), "MemAvailable:")
    except (OSError, ValueError):
        return None
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # Cached files count as used, but make room when memory is asked for.
        cached = sum(_counter(_CGROUP / "memory.stat", which) for which in ("active_file", "inactive_file"))
    except (OSError, ValueError):
        return available  # no container, or one without a limit: "max"
    return min(available, max(0, limit - used + cached))


def _counter(path: pathlib.Path, name: str) -> int:
    """Returns a number of a file whose lines are a name and a number. Raises OSError or ValueError."""
    for line in path.read_text().splitlines():
        key, number, *_ = line.split()
        if key == name:
            return int(number)
    raise ValueError(f"{path} has no {name}")
