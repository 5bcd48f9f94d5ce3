"""Builds the clients and runs their own tests: one row says how for each language. Standard library only.

    python -m tools.clients build [--built] [LANGUAGE...]     --built: only bring up to date what was built before
    python -m tools.clients test [LANGUAGE...]                builds first

A language whose tools are not on this machine is left out, and it says so. It is a failure where the language was named and
where CI=true. It installs nothing on the machine: toolchains and system packages are the caller's.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "clients"
NUM_LOG_LINES_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Step:
    """A command in the language's folder. It is left out while `makes` is younger than `of`."""

    command: str
    makes: str = ""
    of: str = ""

    def is_done(self, folder: pathlib.Path) -> bool:
        """Whether there is nothing to do."""
        made = folder / self.makes
        return (
            bool(self.makes) and made.exists() and made.stat().st_mtime >= (folder / self.of).stat().st_mtime
        )


@dataclasses.dataclass(frozen=True)
class Client:
    """How a language's client is built and tested, in `clients/<language>`."""

    language: str
    #: The programs that must be on the PATH, and where they come from.
    tools: tuple[str, ...]
    source: str
    #: What is there once its conformance program was built.
    program: str
    build: tuple[Step, ...]
    test: tuple[Step, ...]

    @property
    def folder(self) -> pathlib.Path:
        """Where it is."""
        return ROOT / "clients" / self.language

    @property
    def is_built(self) -> bool:
        """Whether its conformance program is there, perhaps an old one."""
        return (self.folder / self.program).exists()

    @property
    def missing_tools(self) -> list[str]:
        """The programs that are not on this machine."""
        return [tool for tool in self.tools if shutil.which(tool) is None]

    def problem(self) -> str | None:
        """Says what is missing and where it comes from; None: it can be built."""
        missing = self.missing_tools
        return f"{', '.join(missing)}: not on this machine ({self.source})" if missing else None


CLIENTS = {
    client.language: client
    for client in (
        Client(
            "python",
            tools=(),
            source="",
            program="conformance/run",
            build=(),
            test=(
                Step(
                    f"{shlex.quote(sys.executable)} -m pytest -q -c ../../pyproject.toml ../../tests/client"
                ),
            ),
        ),
        Client(
            "go",
            tools=("go",),
            source="Go 1.24 or newer",
            program="build/conformance",
            build=(Step("go build -o build/conformance ./conformance"),),
            # Go's cache of results does not see a change of the server.
            test=(Step("go vet ./..."), Step("go test -count=1 ./...")),
        ),
        Client(
            "typescript",
            tools=("node", "npm"),
            source="Node 20 or newer",
            program="build/conformance/main.js",
            build=(
                Step(
                    "npm ci --no-audit --no-fund", "node_modules/.package-lock.json", of="package-lock.json"
                ),
                Step("npm run build"),
            ),
            # The second needs a Chromium; without one it says so, and with CI=true it fails.
            test=(Step("node --test build/test/"), Step("npm run --silent test:browser")),
        ),
        Client(
            "rust",
            tools=("cargo",),
            source="Rust 1.88 or newer",
            program="target/debug/inferwire-conformance",
            # The folder is named, because the program is looked for there whatever CARGO_TARGET_DIR says.
            build=(Step("cargo build --locked --package inferwire-conformance --target-dir target"),),
            test=(Step("cargo test --locked --target-dir target"),),
        ),
        Client(
            "java",
            tools=("javac", "mvn"),
            source="a JDK of 17 or newer, and Maven",
            program="target/classpath",
            build=(Step("mvn -B -q test-compile"),),
            test=(Step("mvn -B -q test"),),
        ),
        Client(
            "cpp",
            tools=("c++", "cmake", "grpc_cpp_plugin", "openssl", "protoc"),
            source="Debian, Ubuntu: the packages of clients/cpp/debian-packages.txt",
            program="build/conformance/inferwire-conformance",
            build=(
                Step("cmake -S . -B build"),
                Step(f"cmake --build build --parallel {os.cpu_count() or 1}"),
            ),
            test=(Step("ctest --test-dir build --output-on-failure"),),
        ),
    )
}


class BuildError(Exception):
    """What the person at the terminal is told, as it stands."""


def main() -> int:
    """Returns 1 when something failed, or was left out that must not be."""
    parser = argparse.ArgumentParser(description="Builds the clients and runs their own tests.")
    parser.add_argument("action", choices=("build", "test"))
    parser.add_argument("--built", action="store_true", help="leave out what was never built")
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help=", ".join(CLIENTS))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.languages) - set(CLIENTS)):
        parser.error(f"there is no client in {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    chosen = [CLIENTS[language] for language in arguments.languages or CLIENTS]
    failed = False
    for client in chosen:
        if arguments.built and not client.is_built:
            continue
        began = time.monotonic()
        try:
            told = do(client, arguments.action, may_be_left_out=not (arguments.languages or is_ci()))
        except BuildError as error:
            told, failed = f"FAILED: {error}", True
        print(f"{client.language:10} {time.monotonic() - began:4.0f} s  {told}", flush=True)
    return 1 if failed else 0


def do(client: Client, action: str, *, may_be_left_out: bool) -> str:
    """Builds a client, and tests it if that is the action. Returns what was done; raises BuildError."""
    if problem := client.problem():
        if may_be_left_out:
            return f"left out: {problem}"
        raise BuildError(problem)
    build(client)
    if action == "build":
        return "built"
    run(client, client.test, "test")
    return "its tests pass"


def build(client: Client) -> None:
    """Builds the conformance program, or brings it up to date; raises BuildError."""
    run(client, client.build, "build")


def run(client: Client, steps: Sequence[Step], name: str) -> None:
    """Runs steps with their output in a log; raises BuildError with the end of it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{client.language}-{name}.log"
    with path.open("w") as log:
        for step in steps:
            if step.is_done(client.folder):
                continue
            log.write(f"$ {step.command}\n")
            log.flush()
            status = subprocess.call(
                shlex.split(step.command),
                cwd=client.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            if status:
                tail = path.read_text(errors="replace").splitlines()[-NUM_LOG_LINES_SHOWN:]
                shown = "".join(f"    {line}\n" for line in tail)
                raise BuildError(
                    f"status {status} of `{step.command}`\n{shown}The whole log: {path.relative_to(ROOT)}"
                )


def is_ci() -> bool:
    """Whether a skip is a failure: nobody reads what a build server leaves out."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


if __name__ == "__main__":
    sys.exit(main())
