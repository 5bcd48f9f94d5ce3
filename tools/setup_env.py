"""Makes `.venv` and installs into it what `make serve`, `make test` and `make train` need. Standard library only.

    python3 tools/setup_env.py [--dev] [--train] [--then COMMAND ...]

It owns `.venv` and nothing else. Every step is safe to repeat, and the stamp of a set (`.venv/run.stamp` and so on) is
written after its last step only, so that a run which was stopped in the middle is simply run again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD_LOG = VENV / "llama-build.log"
INSTALL_LOG = VENV / "install.log"

OLDEST_PYTHON = (3, 11)
LLAMA = "llama-cpp-python"
# Measured on x86-64: 8.6 minutes of one core for the whole build.
LLAMA_CORE_MINUTES = 9
NUM_LOG_LINES_SHOWN = 40

# (what the log says, what to do about it); the first that matches is shown.
HINTS = [
    (
        r"No space left on device",
        "The disk is full. The build needs about 1 GB for temporary files (TMPDIR names another folder).",
    ),
    (
        r"Killed signal|Killed\b|[Cc]annot allocate memory|out of memory",
        "Memory ran out. Compile one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1 make serve",
    ),
    (
        r"NewConnectionError|ConnectTimeout|ReadTimeout|name resolution|ProxyError|SSLError|Could not fetch URL",
        "The package index could not be reached. Check the network and pip's settings, then repeat.",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "A downloaded file is not the one that was locked. If repeating does not help, do not trust its source.",
    ),
    (
        r"No CMAKE_C(XX)?_COMPILER could be found|is not able to compile a simple test program",
        "The compiler does not work. It is named by CC and CXX where they are set.",
    ),
    (
        r"Failed building wheel for (cmake|ninja)|Could not find CMake|CMake must be installed",
        "cmake or ninja has no wheel for this machine: install both with the system's package manager.",
    ),
    (
        r"No matching distribution found",
        "A package has no file for this Python. Try another: make clean, then make serve PYTHON=python3.12",
    ),
]


_PURPOSES = {
    "dev": "test",
    "oracle": "compare answers with Transformers",
    "sdks": "compare scripted providers with the official clients",
    "train": "train",
}


class SetupError(Exception):
    """What the person at the terminal is told, as it stands."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes .venv and installs into it.")
    parser.add_argument("--dev", action="store_true", help="also what tests and linters need")
    parser.add_argument("--train", action="store_true", help="also what training the demo model needs")
    parser.add_argument("--then", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this afterwards")
    arguments = parser.parse_args()
    sets = [
        "run",
        *(["dev", "oracle", "sdks"] if arguments.dev else []),
        *(["train"] if arguments.train else []),
    ]
    try:
        set_up(sets)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        return 130
    return run_until_stopped(arguments.then) if arguments.then else 0


def set_up(sets: list[str]) -> None:
    """Returns when every named set is installed; raises SetupError."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"inferwire needs Python {dotted(OLDEST_PYTHON)} or newer; {sys.executable} is {dotted(sys.version_info)}.\n"
            f"Install one and name it: make serve PYTHON=/path/to/python{dotted(OLDEST_PYTHON)}"
        )
    if all(is_installed(name) for name in sets):
        return
    with only_one_at_a_time():
        missing = [name for name in sets if not is_installed(name)]
        if "run" in missing:
            make_venv()
            install_run()
        for name in missing:
            if name != "run":
                step(f"Installing what is needed to {_PURPOSES[name]}")
                pip("install", "--require-hashes", "--no-deps", "-r", lock_file(name))
            stamp(name).write_text(fingerprint(name))


def make_venv() -> None:
    if has_working_pip():
        return
    for module in ["venv", "ensurepip"]:
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"This Python has no `{module}` module, so it cannot make a virtual environment.\n"
                f"Debian, Ubuntu: sudo apt install python{dotted(sys.version_info[:2])}-venv"
            )
    step(f"Making .venv with Python {dotted(sys.version_info)}")
    # The Makefile runs this file with the Python of .venv where there is one: ask the one behind it.
    base = getattr(sys, "_base_executable", sys.executable)
    command = [base, "-m", "venv", "--clear", str(VENV)]
    result = captured(command)
    if result.returncode != 0:
        raise SetupError(f"{result.stdout}\nThe virtual environment could not be made.")


def install_run() -> None:
    """Installs the packages that come as wheels, then the one that is compiled, then our own two.

    The tools of build.txt are installed beside them and the builds are not isolated: so these are locked as well.
    """
    lock = locked(lock_file("run"))
    llama = lock.pop(LLAMA)
    needs_build = installed_version(LLAMA) != version(llama)
    if needs_build:
        require_compiler()

    wheels = VENV / "wheels.txt"
    wheels.write_text("\n".join(lock.values()))
    step("Installing pip and the build tools")
    pip("install", "--require-hashes", "--no-deps", "-r", lock_file("build"))
    step(f"Installing {len(lock)} packages")
    pip("install", "--require-hashes", "--no-deps", "-r", wheels)

    if needs_build:
        build_llama(llama)

    step("Installing inferwire and its client from this folder")
    pip("install", "--no-deps", "--no-build-isolation", "-e", ROOT / "clients" / "python", "-e", ROOT)


def build_llama(requirement: str) -> None:
    """Compiles llama-cpp-python, unless pip's cache has the wheel, and shows how far it is."""
    cores = num_cores()
    minutes = max(1, round(LLAMA_CORE_MINUTES / cores + 0.5))
    step(
        f"Compiling {LLAMA} {version(requirement)}, once: about {minutes} minute{'s' if minutes > 1 else ''} "
        f"on {cores} core{'s' if cores > 1 else ''}"
    )
    lock = VENV / "llama.txt"
    lock.write_text(requirement)
    options = ["-v", "--require-hashes", "--no-deps", "--no-build-isolation"]
    run_showing_progress(pip_command("install", *options, "-r", lock), BUILD_LOG)


def run_showing_progress(command: list[str], log_file: Path) -> None:
    """Runs a build by ninja to its end, with its output in a log, and shows how far it is; raises SetupError."""
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(num_cores()), **os.environ, "PYTHONUNBUFFERED": "1"}
    # scikit-build-core finds cmake and ninja as modules of .venv. PATH is for what these call in turn.
    environment["PATH"] = f"{PYTHON.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"

    progress = Progress()
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=ROOT,
        )
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                progress.update(line)
        except KeyboardInterrupt:
            # Ctrl-C has reached the build and the compilers as well.
            print("\n    stopping: temporary files are removed", flush=True)
            raise
        finally:
            process.wait()
            progress.end()
    if process.returncode != 0:
        raise failed(command, process.returncode, log_file)
    done(progress.started)


class Progress:
    """One line, redrawn, on a terminal; elsewhere a line at every tenth part. Fed with the lines of the build."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown_percent = -1

    def __repr__(self) -> str:
        return f"<Progress {self._shown_percent} % of the build>"

    def update(self, line: str) -> None:
        match = re.search(r"\[(\d+)/(\d+)\] ", line)
        if match is None:
            return
        percent = 100 * int(match[1]) // max(1, int(match[2]))
        elapsed = clock(time.monotonic() - self.started)
        if self._is_terminal:
            bar = "#" * (percent // 4)
            print(f"\r    [{bar:<25}] {percent:3} %  {elapsed} ", end="", flush=True)
            self._shown_percent = percent
        elif percent // 10 > self._shown_percent // 10:
            print(f"    {percent:3} %  {elapsed}", flush=True)
            self._shown_percent = percent

    def end(self) -> None:
        if self._is_terminal and self._shown_percent >= 0:
            print(flush=True)


def run_until_stopped(command: list[str]) -> int:
    """Runs `command` to its end and returns its exit status; that it was stopped by Ctrl-C or SIGTERM is success.

    make would call such an end an error. The terminal sends Ctrl-C to `command` itself; SIGTERM comes from make to us
    alone and is passed on.
    """
    process = subprocess.Popen(command)
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    status = process.wait()
    by_signal = {sign * number + base for number in stopped for sign, base in [(-1, 0), (1, 128)]}
    if status in by_signal:
        return 0
    return status if status >= 0 else 128 - status


def require_compiler() -> None:
    """Raises SetupError when C++ cannot be compiled: better now than after a minute."""
    for variable, candidates, language, header in [
        ("CC", ["cc", "gcc", "clang"], "c", "stdio.h"),
        ("CXX", ["c++", "g++", "clang++"], "c++", "thread"),
    ]:
        chosen = shlex.split(os.environ.get(variable, ""))
        compiler = next(filter(None, map(shutil.which, chosen[:1] or candidates)), None)
        if compiler is not None:
            check = [*chosen[1:], "-x", language, "-fsyntax-only", "-"]
            if captured([compiler, *check], f"#include <{header}>\n").returncode == 0:
                continue
        raise SetupError(
            f"No working {language.upper()} compiler was found, and {LLAMA} has to be compiled.\n"
            "  Debian, Ubuntu:  sudo apt install build-essential\n"
            "  Fedora:          sudo dnf install gcc gcc-c++\n"
            "  macOS:           xcode-select --install\n"
            "Then repeat. (A compiler elsewhere is named by CC and CXX.)"
        )


def pip(*arguments: str | Path) -> None:
    """Runs pip of .venv quietly, with its output in INSTALL_LOG; raises SetupError."""
    started = time.monotonic()
    command = pip_command(*arguments)
    with INSTALL_LOG.open("w") as log:
        status = subprocess.call(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
        )
    if status != 0:
        raise failed(command, status, INSTALL_LOG)
    done(started)


def pip_command(*arguments: str | Path) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)]


def failed(command: list[str], status: int, log: Path) -> SetupError:
    text = log.read_text(errors="replace")
    tail = "\n".join(f"    {line}" for line in text.splitlines()[-NUM_LOG_LINES_SHOWN:])
    hint = next((advice for pattern, advice in HINTS if re.search(pattern, text)), "The cause is above.")
    return SetupError(
        f"{tail}\n\nThis failed with status {status}:\n    {shlex.join(command)}\n"
        f"{hint}\nThe whole log: {log.relative_to(ROOT)}"
    )


def captured(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def is_installed(name: str) -> bool:
    try:
        return stamp(name).read_text() == fingerprint(name) and PYTHON.exists()
    except FileNotFoundError:
        return False


def stamp(name: str) -> Path:
    return VENV / f"{name}.stamp"


def fingerprint(name: str) -> str:
    """Changes with all that makes a set stale; the folder too, since a virtual environment cannot be moved."""
    digest = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    files = [ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml"]
    for file in [*files, *map(lock_file, sorted({"build", "run", name}))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def has_working_pip() -> bool:
    """Whether .venv is whole, belongs to this Python and is where it was made."""
    probe = "import sys, pip; print(sys.version, sys.prefix, sep='|')"
    try:
        result = captured([str(PYTHON), "-c", probe])
        made_here = f"{VENV}" in (VENV / "bin" / "activate").read_text()
    except OSError:
        return False
    return made_here and result.stdout.strip() == f"{sys.version}|{VENV}"


def installed_version(name: str) -> str | None:
    probe = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    result = captured([str(PYTHON), "-c", probe, name])
    return result.stdout.strip() if result.returncode == 0 else None


def lock_file(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def locked(lock: Path) -> dict[str, str]:
    """The entries of a lock file, name (with marker, where a package has several) to text."""
    entries = {}
    for entry in re.split(r"\n(?=\S)", lock.read_text()):
        match = re.match(r"([a-z0-9-]+)==\S+ *(;[^\\]*)?", entry)
        if match is not None:
            entries[match[1] + (match[2] or "").strip()] = entry
    return entries


def version(requirement: str) -> str:
    return requirement.split("==")[1].split()[0]


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    with Path(__file__).open() as mutex:
        try:
            fcntl.flock(mutex, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up of this folder to end.", flush=True)
            fcntl.flock(mutex, fcntl.LOCK_EX)
        yield


def num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def step(text: str) -> None:
    print(f"==> {text}", flush=True)


def done(started: float) -> None:
    print(f"    done in {clock(time.monotonic() - started)}", flush=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def dotted(version: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in version[:3])


if __name__ == "__main__":
    sys.exit(main())
