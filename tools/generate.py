"""Generates the code of the contract that is checked in, for every language, or proves it fresh. Standard library only.

    python -m tools.generate [--check] [LANGUAGE...]

One buf.gen.yaml cannot say it: buf does not know the plugin of gRPC for Python, which is a part of grpc_tools' protoc; its managed mode,
which Java's package comes from, would write into the descriptors of all languages; and each language takes other files. So the templates
are here, one function per language, and what they have in common is below them: a language is generated into a folder laid out as the
repository, and that is compared or copied. Plugins are local and pinned by each language's own lock file; once they are installed no
network is needed. The code for C++ is made at its build.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from tools import clients
from tools.clients import ROOT

BUF = pathlib.Path(sys.executable).parent / "buf"
#: The published Python code is made with the oldest generator whose runtime floor the client promises, which cannot live beside the
#: server's libraries.
GENERATOR = ROOT / ".venv-generate" / "bin" / "python"
CONTRACT = "proto/inferwire/v1"


def python(out: pathlib.Path) -> None:
    """The contract for the client, with stubs; the engine protocol for the server."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / CONTRACT).glob("*.proto"))
    with_services = [
        file for file in files if re.search(r"^service ", (ROOT / file).read_text(), re.MULTILINE)
    ]
    client, server = out / "clients" / "python", out / "service"
    for folder in (client, server):
        folder.mkdir(parents=True)
    protoc = [str(GENERATOR), "-m", "grpc_tools.protoc", "-I", "proto"]
    _run([*protoc, f"--python_out={client}", f"--pyi_out={client}", *files])
    _run([*protoc, f"--grpc_python_out={client}", f"--mypy_grpc_out={client}", *with_services])
    engine = "proto/inferwire_server/engine/v1/engine.proto"
    _run([*protoc, f"--python_out={server}", f"--pyi_out={server}", engine])


def go(out: pathlib.Path) -> None:
    """The contract. It carries no option of any language: these say where each file's code belongs. go.mod pins the plugins."""
    package = "inferwire.dev/go/inferwire/v1;inferwirev1"
    names = sorted(path.name for path in (ROOT / CONTRACT).glob("*.proto"))
    options = ["paths=source_relative", *(f"Minferwire/v1/{name}={package}" for name in names)]
    plugins = [
        {"local": ["go", "tool", plugin], "out": ".", "opt": options}
        for plugin in ("protoc-gen-go", "protoc-gen-go-grpc")
    ]
    # `go tool` reads the go.mod of the folder that it runs in.
    _buf(ROOT, CONTRACT, {"plugins": plugins}, out / "clients" / "go", cwd=ROOT / "clients" / "go")


def typescript(out: pathlib.Path) -> None:
    """The contract, the details of an error, and for the conformance program gRPC's health service. package.json pins the plugin."""
    client = clients.CLIENTS["typescript"]
    clients.run(client, client.build[:1], "install")
    plugin = str(client.folder / "node_modules" / ".bin" / "protoc-gen-es")
    plugins = [{"local": plugin, "out": ".", "opt": ["target=ts", "import_extension=js"]}]
    made = out / "clients" / "typescript"
    own = client.folder / "proto"
    with tempfile.TemporaryDirectory() as name:
        _buf(ROOT, CONTRACT, {"plugins": plugins}, pathlib.Path(name))
        (made / "src").mkdir(parents=True)
        shutil.move(pathlib.Path(name) / "inferwire" / "v1", made / "src" / "v1")
    _buf(own, str(own / "google"), {"plugins": plugins}, made / "src")
    _buf(own, str(own / "grpc"), {"plugins": plugins}, made / "conformance")


def rust(out: pathlib.Path) -> None:
    """The contract, by a small program of the client's workspace, whose Cargo.lock pins prost and tonic."""
    made = out / "clients" / "rust" / "src" / "gen"
    made.mkdir(parents=True)
    manifest = ROOT / "clients" / "rust" / "Cargo.toml"
    target = manifest.parent / "target"
    with tempfile.TemporaryDirectory() as name:
        descriptors = pathlib.Path(name) / "descriptors.binpb"
        _run([str(BUF), "build", "--path", CONTRACT, "-o", str(descriptors)])
        cargo = ["cargo", "run", "--quiet", "--locked", "--manifest-path", str(manifest)]
        _run(
            [
                *cargo,
                "--target-dir",
                str(target),
                "-p",
                "inferwire-generate",
                "--",
                str(descriptors),
                str(made),
            ]
        )


def java(out: pathlib.Path) -> None:
    """The contract. Maven fetches the plugins once, in the versions that pom.xml names."""
    folder = ROOT / "clients" / "java"
    tools = folder / "target" / "tools"
    pom = (folder / "pom.xml").read_text()
    machine = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch_64", "arm64": "aarch_64"}
    system = {"Linux": "linux", "Darwin": "osx"}.get(platform.system(), "windows")
    classifier = f"{system}-{machine.get(platform.machine().lower(), platform.machine())}"

    def tool(group: str, name: str, key: str) -> str:
        found = re.search(f"<{key}>(.*)</{key}>", pom)
        assert found is not None, f"pom.xml names {key}"
        file = tools / f"{name}-{found[1]}-{classifier}.exe"
        if not os.access(file, os.X_OK):
            copy = "org.apache.maven.plugins:maven-dependency-plugin:3.11.0:copy"
            artifact = f"-Dartifact={group}:{name}:{found[1]}:exe:{classifier}"
            _run(
                [
                    "mvn",
                    "-q",
                    "-B",
                    "-f",
                    str(folder / "pom.xml"),
                    copy,
                    artifact,
                    f"-DoutputDirectory={tools}",
                ]
            )
            file.chmod(0o755)
        return str(file)

    protoc = tool("com.google.protobuf", "protoc", "protobuf.version")
    grpc = tool("io.grpc", "protoc-gen-grpc-java", "protoc-gen-grpc-java.version")
    template = {
        # The package is dev.inferwire.v1, with a file for each message.
        "managed": {"enabled": True, "override": [{"file_option": "java_package_prefix", "value": "dev"}]},
        "plugins": [
            {"protoc_builtin": "java", "protoc_path": protoc, "out": "."},
            {"local": grpc, "out": ".", "opt": "@generated=omit"},
        ],
    }
    _buf(ROOT, CONTRACT, template, out / "clients" / "java" / "src" / "main" / "generated")


@dataclasses.dataclass(frozen=True)
class Generated:
    """A language's code: what makes it, and which files are nobody else's."""

    make: Callable[[pathlib.Path], None]
    owned: tuple[str, ...]

    def files(self, root: pathlib.Path) -> set[str]:
        """Returns what is there beneath a folder laid out as the repository."""
        found = (path for pattern in self.owned for path in root.glob(pattern))
        return {
            str(path.relative_to(root))
            for path in found
            if path.is_file() and "__pycache__" not in path.parts
        }


LANGUAGES = {
    "python": Generated(python, ("clients/python/inferwire/**/*_pb2*.py*", "service/**/*_pb2*.py*")),
    "go": Generated(go, ("clients/go/**/*.pb.go",)),
    "typescript": Generated(
        typescript,
        tuple(f"clients/typescript/{folder}/**/*" for folder in ("src/v1", "src/google", "conformance/grpc")),
    ),
    "rust": Generated(rust, ("clients/rust/src/gen/**/*",)),
    "java": Generated(java, ("clients/java/src/main/generated/**/*",)),
}


def main() -> int:
    """Returns 1 when something is stale or could not be generated, or was left out that must not be."""
    parser = argparse.ArgumentParser(description="Generates the code of the contract that is checked in.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tree differs")
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help=", ".join(LANGUAGES))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.languages) - set(LANGUAGES)):
        parser.error(
            f"no code for {', '.join(unknown)} is checked in; there is that of {', '.join(LANGUAGES)}"
        )
    outcomes = [
        _generate(language, check=arguments.check, must=bool(arguments.languages) or clients.is_ci())
        for language in arguments.languages or LANGUAGES
    ]
    if not all(outcomes) and arguments.check:
        print("Run `make generate` and commit the result.", file=sys.stderr)
    return 0 if all(outcomes) else 1


def _generate(language: str, *, check: bool, must: bool) -> bool:
    """Returns whether all is well with a language."""
    generated = LANGUAGES[language]
    if problem := clients.CLIENTS[language].problem():
        print(f"{language:10} {'FAILED' if must else 'left out'}: {problem}", flush=True)
        return not must
    with tempfile.TemporaryDirectory() as name:
        out = pathlib.Path(name)
        try:
            generated.make(out)
        except clients.BuildError as error:
            print(f"{language:10} FAILED: {error}", flush=True)
            return False
        made, there = generated.files(out), generated.files(ROOT)
        stale = sorted(
            file
            for file in made
            if file not in there or (out / file).read_bytes() != (ROOT / file).read_bytes()
        )
        gone = sorted(there - made)
        if not made:
            print(f"{language:10} FAILED: nothing was generated", flush=True)
            return False
        if check:
            for file in stale:
                print(f"stale: {file}", file=sys.stderr)
            for file in gone:
                print(f"no longer generated: {file}", file=sys.stderr)
            print(f"{language:10} {'STALE' if stale or gone else 'fresh'}", flush=True)
            return not stale and not gone
        for file in stale:
            (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / file, ROOT / file)
        for file in gone:
            (ROOT / file).unlink()
        print(f"{language:10} {len(stale)} written, {len(gone)} removed, of {len(made)}", flush=True)
    return True


def _buf(
    module: pathlib.Path, path: str, template: dict[str, Any], out: pathlib.Path, *, cwd: pathlib.Path = ROOT
) -> None:
    """Generates the files beneath `path` of a module into a folder."""
    said = json.dumps({"version": "v2", **template})
    where = str(ROOT / path)
    _run(
        [str(BUF), "generate", str(module), "--path", where, "--template", said, "--output", str(out)],
        cwd=cwd,
    )


def _run(command: Sequence[str], *, cwd: pathlib.Path = ROOT) -> None:
    ran = subprocess.run(
        command,
        cwd=cwd,
        # protoc looks for the stubs' plugin there.
        env={**os.environ, "PATH": f"{GENERATOR.parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ran.returncode:
        shown = ran.stdout[-3000:]
        raise clients.BuildError(
            f"status {ran.returncode} of `{pathlib.Path(command[0]).name} {command[1]}`\n{shown}"
        )


if __name__ == "__main__":
    sys.exit(main())
