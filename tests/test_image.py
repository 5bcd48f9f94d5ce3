"""The container image that `make check-image` has built: what is in it, and a real container of it.

The container has no writable path at all: its root is read-only and no tmpfs is mounted but /dev, which is root's.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif("IMAGE_FACTS" not in os.environ, reason="only make check-image builds an image"),
    pytest.mark.timeout(300),
]
SBOM_PYTHON = ROOT / ".venv-sbom" / "bin" / "python"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image that is mounted, and how its maker wants it run."""

    root: pathlib.Path
    config: dict[str, Any]

    @property
    def environment(self) -> pathlib.Path:
        return self.root / "opt/inferwire"

    def files(self, pattern: str) -> list[pathlib.Path]:
        return [path for path in self.environment.rglob(pattern) if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module")
def image() -> Image:
    facts = json.loads(pathlib.Path(os.environ["IMAGE_FACTS"]).read_text())
    return Image(pathlib.Path(facts["root"]), facts["config"])


def test_it_says_how_it_wants_to_be_run(image):
    """A number for the user, since Kubernetes cannot tell whether a name is root; labels; a health check."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "10001:10001" == image.config["User"]
    assert "SIGTERM" == image.config["StopSignal"]
    assert version == image.config["Labels"]["org.opencontainers.image.version"]
    assert "Apache-2.0" == image.config["Labels"]["org.opencontainers.image.licenses"]
    assert ["CMD", "inferwire", "health"] == image.config["Healthcheck"]["Test"][:3]


def test_each_library_is_there_once(image):
    """By content; a link costs nothing. llama.cpp's libraries are where they are loaded from, and nowhere else."""
    found = collections.defaultdict(list)
    for path in image.files("*.so*"):
        found[hashlib.sha256(path.read_bytes()).hexdigest()].append(path.relative_to(image.environment))
    assert [] == [paths for paths in found.values() if len(paths) > 1]
    llama = [
        path for paths in found.values() for path in paths if path.name.startswith(("libllama", "libggml"))
    ]
    assert {"lib"} == {path.parent.name for path in llama}
    assert {"llama_cpp"} == {path.parent.parent.name for path in llama}
    assert len(llama) >= 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of x86-64")
def test_the_engine_needs_no_newer_processor_than_promised(image):
    """AVX2 is used, AVX-512's registers and VNNI's instructions are not."""
    (kernels,) = image.files("libggml-cpu.so*")
    code = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", kernels],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert code.count("%ymm") > 1000
    assert 0 == code.count("%zmm")
    assert 0 == code.count("vpdpbusd")
    assert 0 == code.count("{%k")


def test_what_only_builds_need_is_not_there(image):
    """No compiler, no installer, no headers, and bytecode for all that is ours, since nobody can write it later."""
    assert [] == [
        name for name in ("gcc", "cc", "make", "pip", "cmake") if (image.root / "usr/bin" / name).exists()
    ]
    (site,) = image.environment.glob("lib/python3.*/site-packages")
    assert [] == [
        name
        for name in ("pip", "ninja", "scikit_build_core", "include", "lib", "bin")
        if (site / name).exists()
    ]
    sources = set((site / "inferwire_server").rglob("*.py"))
    compiled = {
        path.parents[1] / f"{path.name.split('.')[0]}.py"
        for path in (site / "inferwire_server").rglob("*.pyc")
    }
    assert sources == compiled


def test_the_bill_of_materials_lists_what_is_installed(image):
    """Every Python package with its licence, llama.cpp with its commit, every Debian package, and nothing else."""
    bill = json.loads((image.environment / "sbom.cdx.json").read_text())
    by_kind = collections.defaultdict(dict)
    for each in bill["components"]:
        by_kind[each.get("purl", "pkg:own/").split(":")[1].split("/")[0]][each["name"]] = each
    (site,) = image.environment.glob("lib/python3.*/site-packages")
    packages = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    listed = {**by_kind["pypi"], **by_kind["own"]}
    assert {normal(name) for name in packages} == {
        normal(f"{each['name']}-{each['version']}") for each in listed.values()
    }
    assert {"inferwire", "inferwire-server"} == by_kind["own"].keys()
    assert [] == [name for name, each in listed.items() if not each.get("licenses")]
    status = (image.root / "var/lib/dpkg/status").read_text().split("\n\n")
    installed = {
        dict(line.split(": ", 1) for line in each.splitlines() if ": " in line)["Package"]
        for each in status
        if "Status: install ok installed" in each
    }
    assert installed == by_kind["deb"].keys()
    commit = (image.environment / "llama.cpp-commit").read_text().strip()
    assert f"pkg:github/ggml-org/llama.cpp@{commit}" == by_kind["github"]["llama.cpp"]["purl"]


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_the_bill_of_materials_keeps_its_schema(image):
    """CycloneDX's own, strictly; a bill with a word that does not exist would be refused."""
    text = (image.environment / "sbom.cdx.json").read_text()
    assert "" == problem_of(text)
    assert "" != problem_of(text.replace('"purl"', '"prul"', 1))


def problem_of(bill: str) -> str:
    code = (
        "import sys; from cyclonedx.validation.json import JsonStrictValidator; from cyclonedx.schema import SchemaVersion\n"
        "problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()); print(problem or '', end='')"
    )
    return subprocess.run(
        [SBOM_PYTHON, "-c", code], input=bill, check=True, capture_output=True, text=True
    ).stdout


class Container:
    """A container of the image as an orchestrator would run it: another user, nothing writable, no capability."""

    def __init__(self, image: Image, folder: pathlib.Path) -> None:
        self.name = f"inferwire-{os.getpid()}"
        self.config = image.config
        self._state = folder / "state"
        (folder / "bundle").mkdir()
        (folder / "bundle" / "config.json").write_text(json.dumps(runtime_config(image)))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self._runc("run"), "--bundle", folder / "bundle", self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _runc(self, verb: str) -> list[str | pathlib.Path]:
        return ["runc", "--root", self._state, verb]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as the container's user."""
        return subprocess.run(
            [*self._runc("exec"), self.name, *command], capture_output=True, text=True, check=False
        )

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a client that is not in the container and shares its network alone."""
        state = json.loads(
            subprocess.run([*self._runc("state"), self.name], check=True, capture_output=True).stdout
        )
        return subprocess.run(
            [
                "nsenter",
                "--net",
                "--target",
                str(state["pid"]),
                sys.executable,
                "-m",
                "inferwire_server.cli",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    def is_healthy(self) -> bool:
        """Asks as the image's health check does."""
        return self.run(*self.config["Healthcheck"]["Test"][1:]).returncode == 0

    def signal(self, number: signal.Signals) -> None:
        subprocess.run([*self._runc("kill"), self.name, number.name], check=True)

    def remove(self) -> None:
        subprocess.run([*self._runc("delete"), "--force", self.name], check=False, capture_output=True)
        self.process.wait()


def runtime_config(image: Image) -> dict[str, Any]:
    user, group = map(int, image.config["User"].split(":"))
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.root), "readonly": True},
        "process": {
            "user": {"uid": user, "gid": group},
            "args": image.config["Entrypoint"] + image.config["Cmd"],
            "env": image.config["Env"],
            "cwd": image.config["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "hostname": "inferwire",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=64k"],
            },
        ],
        "linux": {
            "namespaces": [{"type": each} for each in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


@pytest.fixture
def container(image: Image, tmp_path: pathlib.Path) -> Iterator[Container]:
    container = Container(image, tmp_path)
    try:
        yield container
    finally:
        container.remove()
        print(container.log.read_text())


def until_healthy(container: Container) -> float:
    began = time.monotonic()
    while not container.is_healthy():
        assert container.process.poll() is None, container.log.read_text()
    return time.monotonic() - began


def test_a_container_serves_and_drains(container):
    """Healthy by the image's own check; an answer to a client outside; SIGTERM ends it with 0."""
    print(f"healthy after {until_healthy(container):.1f} s")
    answer = container.call(
        "complete",
        "--address",
        "127.0.0.1:50051",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "Once upon a time",
    )
    assert 0 == answer.returncode, answer.stderr
    assert len(answer.stdout.split()) > 3
    container.signal(getattr(signal, container.config["StopSignal"]))
    assert 0 == container.process.wait(60)
    events = [
        json.loads(line)["event"] for line in container.log.read_text().splitlines() if line.startswith("{")
    ]
    assert ["draining", "stopped"] == [event for event in events if event in ("draining", "stopped")]


def test_a_container_can_write_nowhere(container):
    """Its user finds no file and no folder that it may write, and the server runs all the same."""
    until_healthy(container)
    code = """
import os
print(os.getuid(), os.getgid(), os.getgroups())
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders.remove("proc")
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        if os.access(path, os.W_OK) and not path.startswith("/dev/"):
            print(path)
"""
    found = container.run("python3", "-c", code)
    assert (0, "10001 10001 []\n") == (found.returncode, found.stdout)
    status = container.run("cat", "/proc/1/status").stdout
    told = dict(line.split(":\t") for line in status.splitlines())
    assert {"0000000000000000"} == {told[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert "1" == told["NoNewPrivs"]


def test_a_container_that_is_not_ready_is_not_healthy(container):
    """The health check can fail: the server is there, and drains."""
    until_healthy(container)
    container.signal(signal.SIGTERM)
    while container.is_healthy():
        pass
    assert container.process.poll() is None
