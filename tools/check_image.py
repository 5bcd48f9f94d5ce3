"""Builds the container image without a Docker daemon and tries it: `make check-image`.

    python tools/check_image.py [--base IMAGE | --suite trixie] [--context FOLDER]

buildah reads the very Dockerfile. Where no registry can be reached its base is made by debootstrap from the mirror that apt
has, without what slim images leave out; pip's own settings are handed in as secrets. tests/test_image.py then looks at the
image and runs it with runc. Needs root, and buildah, runc, debootstrap and binutils.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "image"
NAME = "localhost/inferwire"
# What the images of the name NAME-slim have in this file.
SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
"""


class CheckError(Exception):
    """What the person at the terminal is told, as it stands."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the container image without Docker and tries it.")
    parser.add_argument("--base", help="an image to pull and build upon (default: one made here)")
    parser.add_argument("--suite", default="trixie", help="the Debian release of the base that is made here")
    parser.add_argument("--context", type=Path, default=ROOT, help="what to build (default: this folder)")
    arguments = parser.parse_args()
    try:
        require_tools()
        WORK.mkdir(parents=True, exist_ok=True)
        # Of a run that was stopped.
        output(*buildah("rm", "--all"))
        base = arguments.base or make_base(arguments.suite)
        seconds = timed("building the image", lambda: build(base, arguments.context))
        with mounted() as root:
            facts = WORK / "image.json"
            facts.write_text(json.dumps({**inspect(), "root": str(root), "build_seconds": round(seconds)}))
            print(f"{NAME}: {megabytes(root)} MB unpacked, {packed_megabytes()} MB packed", flush=True)
            return subprocess.call(
                [sys.executable, "-m", "pytest", "-v", "-rP", "tests/test_image.py"],
                cwd=ROOT,
                env={**os.environ, "IMAGE_FACTS": str(facts)},
            )
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        # buildah mounts its store upon itself and leaves it so; then `make clean` could not remove it.
        subprocess.call(["umount", "--lazy", "--quiet", WORK / "store" / "overlay"])


def require_tools() -> None:
    """Raises CheckError when something is missing."""
    missing = [tool for tool in ("buildah", "debootstrap", "objdump", "runc") if shutil.which(tool) is None]
    if missing:
        raise CheckError(
            f"{', '.join(missing)} cannot be found.\n"
            "Debian, Ubuntu: apt install --no-install-recommends buildah runc debootstrap binutils"
        )
    if os.geteuid() != 0:
        raise CheckError("Only root can make a base system and mount an image.")


def buildah(*arguments: str | Path) -> list[str | Path]:
    return ["buildah", "--root", WORK / "store", "--runroot", WORK / "run", *arguments]


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def logged(name: str, command: list[str | Path]) -> None:
    """Runs a command with its output in a log; raises CheckError with the log's end."""
    log = WORK / f"{name}.log"
    with log.open("w") as file:
        status = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CheckError(f"{tail}\n\nThe {name} failed with status {status}; the whole log: {log}")


def timed(what: str, action: Callable[[], None]) -> float:
    print(f"==> {what}", flush=True)
    began = time.monotonic()
    action()
    seconds = time.monotonic() - began
    print(f"    {seconds:.0f} s", flush=True)
    return seconds


def make_base(suite: str) -> str:
    """Returns the name of an image with a Debian release's smallest system, made once."""
    name = f"localhost/debian-{suite}"
    if (
        subprocess.call(
            buildah("inspect", "--type", "image", name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        == 0
    ):
        return name
    root = WORK / f"base-{suite}"
    shutil.rmtree(root, ignore_errors=True)

    def bootstrap() -> None:
        mirror, security = mirrors()
        logged("base", ["debootstrap", "--variant=minbase", suite, root, mirror])
        sources = [f"deb {mirror} {suite} main", f"deb {mirror} {suite}-updates main"]
        sources += [f"deb {security} {suite}-security main"] if security else []
        (root / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
        (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
        for file in (root / "usr/share/doc").rglob("*"):
            if not file.is_dir() and file.name != "copyright":
                file.unlink()
        for folder in ("man", "locale", "info", "lintian"):
            shutil.rmtree(root / "usr/share" / folder, ignore_errors=True)
        for folder in ("var/lib/apt/lists", "var/cache/apt"):
            shutil.rmtree(root / folder, ignore_errors=True)

    timed(f"making a base of Debian {suite}", bootstrap)
    container = output(*buildah("from", "scratch"))
    subprocess.run(buildah("add", "--quiet", container, root, "/"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        buildah("commit", "--quiet", "--rm", container, name), check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(root)
    return name


def mirrors() -> tuple[str, str]:
    """Returns the addresses from which this machine's apt has Debian and its security fixes, the latter if any."""
    lines = output(
        "apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages"
    )
    found = [line.split("|") for line in lines.splitlines()]
    security = [address for origin, suite, address in found if suite.endswith("-security")]
    plain = [
        address for origin, suite, address in found if origin == "Debian" and not suite.endswith("-security")
    ]
    if not plain:
        raise CheckError("apt has no mirror of Debian here: name an image with --base.")
    return plain[0], next(iter(security), "")


def build(base: str, context: Path) -> None:
    """Builds the image with the package index and the authority that pip has here."""
    settings = dict(
        line.split("=", 1) for line in output(sys.executable, "-m", "pip", "config", "list").splitlines()
    )
    settings = {key.rpartition(".")[2]: value.strip("'") for key, value in settings.items()}
    lines = [
        "[global]",
        *(f"{key} = {settings[key]}" for key in ("index-url", "extra-index-url") if key in settings),
    ]
    secrets = ["--secret", f"id=pip,src={WORK / 'pip.conf'}"]
    if "cert" in settings:
        lines.append("cert = /run/ca.pem")
        secrets += ["--secret", f"id=ca,src={settings['cert']}"]
    (WORK / "pip.conf").write_text("\n".join(lines) + "\n")
    options = [
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--layers",
        "--pull" if "/" not in base else "--pull-never",
    ]
    logged(
        "build",
        [
            *buildah("build"),
            *options,
            *secrets,
            "--build-arg",
            f"BASE={base}",
            "--tag",
            NAME,
            "--file",
            context / "Dockerfile",
            context,
        ],
    )


def inspect() -> dict[str, object]:
    """Returns the image's settings, as a container runtime reads them."""
    config: dict[str, object] = json.loads(output(*buildah("inspect", "--type", "image", NAME)))["Docker"][
        "config"
    ]
    return {"config": config}


@contextmanager
def mounted() -> Iterator[Path]:
    container = output(*buildah("from", "--pull-never", NAME))
    try:
        yield Path(output(*buildah("mount", container)))
    finally:
        output(*buildah("rm", container))


def megabytes(root: Path) -> int:
    return round(int(output("du", "--summarize", "--bytes", "--one-file-system", root).split()[0]) / 1e6)


def packed_megabytes() -> int:
    """Returns the size of the layers as a registry stores them."""
    folder = WORK / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    output(*buildah("push", "--quiet", "--format", "docker", NAME, f"dir:{folder}"))
    size = sum(file.stat().st_size for file in folder.iterdir())
    shutil.rmtree(folder)
    return round(size / 1e6)


if __name__ == "__main__":
    sys.exit(main())
