"""What newcomers install is pinned, agrees with itself, and names no machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
SERVER = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]

each_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)


def entries(lock: Path) -> list[str]:
    """One text for each locked package, its hashes included."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


def locked_versions(lock: Path) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for entry in entries(lock):
        name, _, rest = entry.partition("==")
        versions.setdefault(name, set()).add(rest.split()[0])
    return versions


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@each_lock
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    """pip refuses a file of which one entry has no hash, and nothing else may come in beside the locked versions."""
    for entry in entries(lock):
        assert re.fullmatch(
            r"[a-z0-9-]+==[0-9][\w.]*( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry
        ), entry


@each_lock
def test_a_lock_names_no_address_and_no_folder(lock: Path) -> None:
    """Everybody installs from the index that they have configured."""
    assert [] == re.findall(
        r"^.*(?://|--index-url|--find-links|@ |/home/|/tmp/).*$", lock.read_text(), re.MULTILINE
    )


@pytest.mark.parametrize(
    ("requirements", "lock"),
    [
        (SERVER["dependencies"], "run"),
        (CLIENT["dependencies"], "run"),
        (SERVER["dependencies"] + SERVER["optional-dependencies"]["dev"], "dev"),
        (SERVER["dependencies"] + SERVER["optional-dependencies"]["train"], "train"),
    ],
    ids=["server", "client", "dev", "train"],
)
def test_the_locks_satisfy_the_projects(requirements: list[str], lock: str) -> None:
    """A changed lower bound or pin asks for `make lock`."""
    locked = locked_versions(ROOT / "requirements" / f"{lock}.txt")
    for requirement in requirements:
        name, *bounds = re.split(r"(?=[=<>])|,", requirement)
        if name == CLIENT["name"]:
            continue
        assert name in locked, f"{name} is not in {lock}.txt: run make lock"
        for operator, bound in re.findall(r"(==|>=|<)([\d.]+)", ",".join(bounds)):
            for version in locked[name]:
                holds = {
                    "==": version == bound,
                    ">=": numbers(version) >= numbers(bound),
                    "<": numbers(version) < numbers(bound),
                }
                assert holds[operator], (
                    f"{name}=={version} is locked, but {requirement} is asked for: run make lock"
                )


def test_the_locks_agree_with_one_another() -> None:
    """They share an environment; only the generator and a peer of the benchmarks have their own."""
    shared = [locked_versions(lock) for lock in LOCKS if lock.stem not in ("generate", "litellm")]
    for name in set().union(*shared):
        assert 1 == len({frozenset(lock[name]) for lock in shared if name in lock}), name


def test_server_and_client_have_one_version() -> None:
    """They are released together, and the server asks for exactly this client."""
    assert SERVER["version"] == CLIENT["version"]
    assert f"{CLIENT['name']}=={CLIENT['version']}" in SERVER["dependencies"]
    assert SERVER["requires-python"] == CLIENT["requires-python"]


def test_image_chart_and_compose_have_the_version_of_the_server() -> None:
    """A release raises it in one commit; by default the chart asks for the image of its own version."""
    version = re.escape(SERVER["version"])
    for file, pattern in [
        ("Dockerfile", rf"^ARG VERSION={version}$"),
        ("deploy/helm/inferwire/Chart.yaml", rf"^version: {version}$"),
        ("deploy/helm/inferwire/Chart.yaml", rf"^appVersion: {version}$"),
        ("deploy/compose/compose.yaml", rf"^    image: inferwire:{version}$"),
    ]:
        assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE), file


def test_the_image_is_made_of_what_docker_is_sent() -> None:
    """All that the Dockerfile copies from the folder exists, and .dockerignore lets it through."""
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [
        source for line in lines if re.match(r"COPY (?!--from)", line) for source in line.split()[1:-1]
    ] + re.findall(r"type=bind,source=([^,]+),", "\n".join(lines))
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in sent), source


def test_the_generator_is_the_one_whose_runtime_the_client_promises() -> None:
    """Generated code refuses a grpcio that is older than its generator."""
    (generator,) = locked_versions(ROOT / "requirements/generate.txt")["grpcio-tools"]
    (floor,) = [item.partition(">=")[2] for item in CLIENT["dependencies"] if item.startswith("grpcio>=")]
    assert numbers(floor) == numbers(generator)[: len(numbers(floor))]


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    """A path that begins at somebody's home works nowhere else."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    # Written in two parts, so that this file does not find itself.
    pattern = "(^|[^A-Za-z0-9_.$}/-])/" + "(home|Users|root)/[A-Za-z0-9_.-]+/"
    found = subprocess.run(
        ["git", "grep", "-nIE", pattern], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "" == found.stdout
    assert 1 == found.returncode


def test_help_lists_every_target() -> None:
    """`make` with nothing behind it tells what there is to do."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(phony.split())
    assert targets == set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE))
