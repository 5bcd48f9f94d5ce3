"""A backend that somebody else wrote: a package is built, installed, named in a configuration, and answers over gRPC."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from inferwire import AsyncClient, InferwireError, user
from inferwire.v1 import inference_pb2 as pb

SOURCE = pathlib.Path(__file__).parent / "providers" / "shout"
# The one that its README shows.
(CONFIG,) = re.findall(r"```toml\n(.*?)```", (SOURCE / "README.md").read_text(), re.DOTALL)


def environment(*folders: pathlib.Path) -> dict[str, str]:
    """Returns the environment of a server that finds packages in these folders too."""
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def serve(tmp_path: pathlib.Path, config: str, *folders: pathlib.Path) -> subprocess.Popen[str]:
    """Starts a server with a configuration."""
    (tmp_path / "inferwire.toml").write_text(config)
    return subprocess.Popen(
        [sys.executable, "-m", "inferwire_server.cli", "serve", "--address", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(*folders),
    )


def refused(tmp_path: pathlib.Path, config: str, *folders: pathlib.Path) -> str:
    """Returns the one line with which a server ends that cannot serve."""
    server = serve(tmp_path, config, *folders)
    output, told = server.communicate()
    assert (2, "") == (server.returncode, output)
    (line,) = told.splitlines()
    return line


def package(folder: pathlib.Path, code: str) -> pathlib.Path:
    """Makes an installed package by hand: a module, and the metadata that names a class in it."""
    folder.mkdir()
    (folder / "shout_backend.py").write_text(code)
    metadata = folder / "shout-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[inferwire.backends]\nshout = shout_backend:Shout\n")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder with the package as pip installs it; without a network, and without a trace in the source."""
    folder = tmp_path_factory.mktemp("third party")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    subprocess.run(
        [*command, *options, "--target", str(folder / "site"), str(folder / "source")],
        check=True,
    )
    return folder / "site"


@pytest.fixture
async def client(tmp_path, installed) -> AsyncIterator[AsyncClient]:
    """A client of a server that has the package."""
    server = serve(tmp_path, CONFIG, installed)
    try:
        line = server.stdout.readline()
        found = re.search(r"listens on (127\.0\.0\.1:\d+)", line)
        assert found, line + server.stderr.read()
        async with AsyncClient(found[1]) as client:
            yield client
    finally:
        server.kill()
        server.communicate()


def test_the_package_holds_its_module_and_nothing_else(installed):
    """What the README says to write is all that there is."""
    names = {path.name for path in installed.iterdir()} - {"__pycache__"}
    assert {"shout_backend.py", "inferwire_shout-0.1.0.dist-info"} == names


async def test_it_answers_like_any_other(client):
    """Over gRPC, by its model's name; word by word, with its option, and with all that the server keeps for it."""
    async with client.stream(chat=[user("hello there")], model="loud/v1") as stream:
        events = [event async for event in stream]
    kinds = [event.WhichOneof("event") for event in events]
    assert ["started", "text", "text", "completion"] == kinds
    assert ("loud", "loud/v1") == (events[0].started.backend, events[0].started.model)
    assert "HELLO THERE!!" == "".join(event.text.text for event in events)
    assert pb.FINISH_REASON_STOP == events[-1].completion.finish_reason
    cut = await client.complete(chat=[user("hello there")], model="loud/v1", stop=["THE"])
    assert ("HELLO ", "THE") == (cut.message.parts[0].text, cut.completion.stop_string)


async def test_it_is_listed_like_any_other(client):
    """With its name, its models and its health."""
    (backend,) = await client.list_backends()
    assert ("loud", "Shout", "v1") == (backend.id, backend.display_name, backend.default_model)
    assert ["v1"] == list(backend.available_models)
    assert pb.BACKEND_HEALTH_SERVING == backend.health
    assert backend.capabilities.chat
    assert not backend.capabilities.tools


async def test_what_it_does_not_support_is_refused(client):
    """Before it is asked: the package has no line for it."""
    with pytest.raises(InferwireError) as caught:
        await client.complete(chat=[user("hello")], model="loud/v1", temperature=0.5)
    assert "UNSUPPORTED_BY_BACKEND" == caught.value.reason
    assert ["sampling.temperature"] == [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            CONFIG.replace("mark", "marc"),
            ["backends.loud.options.marc", "did you mean backends.loud.options.mark?"],
        ),
        (CONFIG.replace('"!!"', "3"), ["backends.loud.options.mark", "Expected `str`, got `int`"]),
        (CONFIG.replace('"shout"', '"shuot"'), ["backends.loud.type: 'shuot'", "did you mean shout?"]),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path, installed, config, words):
    """Exit code 2, and the nearest that would do."""
    line = refused(tmp_path, config, installed)
    assert [] == [word for word in words if word not in line]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("class Shout: pass", "'shout' is no subclass of inferwire_server.backends.provider.Provider"),
        ("def Shout(): pass", "'shout' is no subclass of inferwire_server.backends.provider.Provider"),
        ("Loud = 1", "'shout' is installed but cannot be imported"),
        (
            "import no_such_module",
            "'shout' is installed but cannot be imported: No module named 'no_such_module'",
        ),
        ("raise RuntimeError('no\\nluck')", "'shout' is installed but cannot be imported"),
        ("def broken(:", "'shout' is installed but cannot be imported"),
    ],
)
def test_a_package_that_is_no_backend_is_one_line(tmp_path, code, words):
    """Exit code 2, no traceback: which table asks for it, and what is wrong with it."""
    line = refused(tmp_path, CONFIG, package(tmp_path / "site", code))
    assert f"backends.loud.type: {words}" in line
