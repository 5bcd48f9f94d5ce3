"""Who may import whom. The imports are read from the source; the few that matter at run time are tried."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "inferwire_server": ROOT / "service/inferwire_server",
    "inferwire": ROOT / "clients/python/inferwire",
}
GENERATED = ("_pb2", "_pb2_grpc")


def imports_of(path: Path, package: str) -> Iterator[str]:
    """The full name of everything that a file imports; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def read_imports() -> dict[str, set[str]]:
    found = {}
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if path.stem.endswith(GENERATED):
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join([name, *(parts[:-1] if is_package else parts)])
            package = module if is_package else module.rpartition(".")[0]
            found[module] = set(imports_of(path, package))
    return found


IMPORTS = read_imports()


def lies_in(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def importers_of(library: str) -> set[str]:
    return {module for module, imports in IMPORTS.items() if any(lies_in(name, library) for name in imports)}


def server(*names: str) -> list[str]:
    return [f"inferwire_server.{name}" for name in names]


@pytest.mark.parametrize(
    ("libraries", "places"),
    [
        (
            ["grpc", "grpc_health", "grpc_reflection"],
            [
                "inferwire",
                *server("ports", "rpc", "status", "health", "tls", "channel_arguments", "web"),
                *server("backends.inferwire", "cli"),
            ],
        ),
        (["connectrpc", "uvicorn", "h11", "protobuf"], server("web")),
        (["httpx"], server("backends._http")),
        (["httpcore"], server("backends._http", "backends._network")),
        (["llama_cpp"], server("engine.llama_model", "engine.llama_runner", "engine.sampler")),
        (["llguidance"], server("engine.grammar")),
        (["click", "rich"], server("cli")),
        (["jinja2"], server("engine.chat")),
        (["prometheus_client"], server("metrics")),
        (["opentelemetry"], server("traces")),
    ],
    ids=lambda value: value[0],
)
def test_a_library_is_imported_only_in(libraries: list[str], places: list[str]) -> None:
    """Each library has its few places; whoever else wants it asks them."""
    for library in libraries:
        assert set() == {module for module in importers_of(library) if not lies_in(module, *places)}


@pytest.mark.parametrize(
    "library", ["threading", "queue", "_thread", "concurrent", "multiprocessing", "asyncio"]
)
def test_threads_of_the_engine_live_in_two_files(library: str) -> None:
    """One engine thread and one intake thread: only who starts them and the inbox between them know of threads."""
    inside = {module for module in importers_of(library) if lies_in(module, "inferwire_server.engine")}
    assert inside <= set(server("engine.engine", "engine.__main__"))


@pytest.mark.parametrize("name", ["scheduler", "cells", "sequence", "detokenizer", "embedding"])
def test_the_core_of_the_engine_is_pure(name: str) -> None:
    """No thread, no clock, no llama, no socket: its tests take a millisecond."""
    impure = (
        "threading",
        "queue",
        "time",
        "datetime",
        "llama_cpp",
        "grpc",
        "socket",
        "os",
        "asyncio",
        "random",
    )
    assert set() == {
        imported for imported in IMPORTS[f"inferwire_server.engine.{name}"] if lies_in(imported, *impure)
    }


def test_errors_import_nothing() -> None:
    """Everybody imports the failures; they import nobody of the project."""
    assert set() == {name for name in IMPORTS["inferwire_server.errors"] if lies_in(name, *PACKAGES)}


def test_the_engine_is_reached_through_its_socket() -> None:
    """Outside engine/, only its messages and the pure text stream may be imported from it."""
    allowed = server("engine.v1", "engine.detokenizer")
    wrong = {
        (module, name)
        for module, imports in IMPORTS.items()
        if not lies_in(module, "inferwire_server.engine")
        for name in imports
        if lies_in(name, "inferwire_server.engine") and not lies_in(name, *allowed)
    }
    assert set() == wrong


def test_the_engine_needs_little_of_the_server() -> None:
    """Inside engine/, only the failures and the frames come from outside it."""
    wrong = {
        (module, name)
        for module, imports in IMPORTS.items()
        if lies_in(module, "inferwire_server.engine")
        for name in imports
        if lies_in(name, "inferwire_server")
        and name != "inferwire_server"
        and not lies_in(name, *server("engine", "errors", "wire"))
    }
    assert set() == wrong


def test_nobody_imports_the_command_line() -> None:
    """It stands on the server, never the other way round."""
    assert set() == {
        module for module in importers_of("inferwire_server.cli") if not lies_in(module, *server("cli"))
    }


def test_the_client_knows_no_server() -> None:
    """It is published alone."""
    assert set() == {module for module in importers_of("inferwire_server") if lies_in(module, "inferwire")}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("inferwire_server.server", ["llama_cpp", "jinja2", "connectrpc", "uvicorn"]),
        ("inferwire_server.engine.__main__", ["grpc", "llama_cpp"]),
        ("inferwire_server.engine.llama_runner", ["grpc"]),
        ("inferwire_server.cli", ["grpc", "llama_cpp"]),
        ("inferwire.v1.inference_pb2", ["grpc"]),
        ("inferwire_server.config", ["grpc", "llama_cpp"]),
    ],
)
def test_an_import_loads_no_more_than_it_must(module: str, absent: list[str]) -> None:
    """The gateway never loads llama.cpp, an engine process never gRPC, and a command's help is there at once."""
    if module.endswith("llama_runner"):
        pytest.importorskip("llama_cpp")
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "") == (ran.returncode, ran.stdout.strip()), ran.stderr
