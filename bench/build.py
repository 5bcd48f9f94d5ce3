"""The peers that are measured beside us: llama-server and llama-batched-bench, built from the llama.cpp inside the very
llama-cpp-python that is installed, with the same options; and the Python server that this package brings.

Everything is made once, beneath build/bench, and made again when what it is made of changes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tarfile
from pathlib import Path

from tools import setup_env

WORK = setup_env.ROOT / "build" / "bench"
PYTHON = setup_env.ROOT / ".venv-bench" / "bin" / "python"
SOURCE = WORK / "llama-cpp-python"
LLAMA_SERVER = WORK / "llama.cpp" / "bin" / "llama-server"
LLAMA_BATCHED_BENCH = WORK / "llama.cpp" / "bin" / "llama-batched-bench"
VOCABULARY = SOURCE / "vendor" / "llama.cpp" / "models" / "ggml-vocab-qwen2.gguf"
_BUILD_LOG = WORK / "llama.cpp.log"

# Whatever decides how the kernels are compiled is left as it is for the package itself; these choose what is built.
_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
]


def fetch_source() -> None:
    """Unpacks the source of the locked llama-cpp-python. Raises SetupError."""
    requirement = setup_env.locked(setup_env.lock_file("run"))[setup_env.LLAMA]
    stamp = WORK / "source.stamp"
    if _holds(stamp, requirement):
        return
    setup_env.step(f"Fetching the source of {setup_env.LLAMA} {setup_env.version(requirement)}")
    download = WORK / "download"
    for folder in (SOURCE, download):
        shutil.rmtree(folder, ignore_errors=True)
    download.mkdir(parents=True)
    lock = download / "llama.txt"
    lock.write_text(requirement)
    options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--no-binary", setup_env.LLAMA]
    setup_env.pip("download", *options, "-d", download, "-r", lock)
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            # The folder of the release, and its history: neither is of use here.
            member.name = member.name.partition("/")[2]
            if member.name and not member.name.startswith((".git/", ".git\0")):
                tar.extract(member, SOURCE, filter="data")
    shutil.rmtree(download)
    stamp.write_text(requirement)


def build() -> None:
    """Compiles the two programs. Raises SetupError."""
    requirement = setup_env.locked(setup_env.lock_file("run"))[setup_env.LLAMA]
    options = [*_OPTIONS, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
    made_of = hashlib.sha256(f"{setup_env.ROOT} {requirement} {options}".encode()).hexdigest()
    stamp = WORK / "build.stamp"
    if _holds(stamp, made_of) and LLAMA_SERVER.exists() and LLAMA_BATCHED_BENCH.exists():
        return
    setup_env.require_compiler()
    setup_env.step("Compiling llama-server and llama-batched-bench, once: some minutes")
    folder = LLAMA_SERVER.parent.parent
    cmake, ninja = (str(setup_env.PYTHON.parent / tool) for tool in ("cmake", "ninja"))
    configure = [cmake, "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    setup_env.run_showing_progress([*configure, *options], WORK / "configure.log")
    targets = [LLAMA_SERVER.name, LLAMA_BATCHED_BENCH.name]
    setup_env.run_showing_progress([cmake, "--build", str(folder), "--target", *targets], _BUILD_LOG)
    stamp.write_text(made_of)


def _holds(stamp: Path, text: str) -> bool:
    return stamp.exists() and stamp.read_text() == text
