"""deploy/compose: valid by the specification's schema, agreeing with itself, and its settings start a server."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import grpc
import jsonschema
import pytest
import yaml

from inferwire import Client, InferwireError
from inferwire_server import config, server

from . import charts

FOLDER = charts.ROOT / "deploy" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the folder after prepare.sh has run in it, twice."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("deploy") / "compose"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("secrets", "models", ".env"))
    subprocess.run([folder / "prepare.sh"], check=True, capture_output=True)
    before = contents(folder)
    subprocess.run([folder / "prepare.sh"], check=True, capture_output=True)
    assert before == contents(folder)
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mounted(folder: pathlib.Path) -> str:
    """Returns inferwire.toml with the paths that the mounts lead to."""
    text = (folder / "inferwire.toml").read_text()
    for volume in COMPOSE["services"]["inferwire"]["volumes"]:
        source, target, mode = volume.split(":")
        assert "ro" == mode
        text = text.replace(f'"{target}', f'"{folder / source}')
    return text


@pytest.mark.timeout(600)
def test_it_keeps_the_schema_of_the_specification():
    """And a word that does not exist is refused."""
    folder = charts.module_folder(charts.COMPOSE)
    schema = json.loads((folder / "schema" / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)
    wrong = {"services": {"inferwire": {**COMPOSE["services"]["inferwire"], "read_onyl": True}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_what_it_mounts_is_there(prepared):
    """Every source of a mount exists once prepare.sh has run; dashboards and rules lie beside the folder."""
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (prepared / source).exists(), source
            elif source.startswith("../"):
                assert (FOLDER / source).is_dir(), source
            else:
                assert source in COMPOSE["volumes"]
    for secret in COMPOSE["secrets"].values():
        assert (prepared / secret["file"]).exists()


def test_nobody_else_can_read_the_secrets(prepared):
    """The folder is closed, the authority's key reaches no container, and a user who is not root runs the server."""
    assert 0o700 == (prepared / "secrets").stat().st_mode & 0o777
    assert ["ca.key"] == [path.name for path in prepared.rglob("ca.key")]
    assert not (prepared / "secrets/inferwire/ca.key").exists()
    told = dict(line.split("=") for line in (prepared / ".env").read_text().splitlines())
    assert "0" != told["INFERWIRE_USER"]


def test_the_settings_agree(prepared, tmp_path):
    """They load; Prometheus asks the port that has the metrics; the container is killed after the drain."""
    (tmp_path / "inferwire.toml").write_text(mounted(prepared))
    settings = config.load(tmp_path / "inferwire.toml", environment={})
    assert settings.tls_certificate
    assert not settings.insecure
    (target,) = PROMETHEUS["scrape_configs"][0]["static_configs"][0]["targets"]
    assert f"inferwire:{settings.metrics_address.rpartition(':')[2]}" == target
    assert not any("9464" in port for port in COMPOSE["services"]["inferwire"]["ports"])
    longest = settings.lame_duck_seconds + settings.drain_seconds
    longest += server.STOP_GRACE_SECONDS + server.WATCHDOG_SECONDS
    assert longest < int(COMPOSE["services"]["inferwire"]["stop_grace_period"].removesuffix("s"))


@contextlib.contextmanager
def serving(file: pathlib.Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "inferwire_server.cli", "serve", "--config", file],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "INFERWIRE_LAME_DUCK_SECONDS": "0", "INFERWIRE_METRICS_ADDRESS": ""},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_with_these_settings_lets_in_who_has_a_key(prepared, tmp_path):
    """By TLS, with the certificate that prepare.sh made; a key that is added while it runs counts within seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = mounted(prepared).replace("0.0.0.0:50051", f"127.0.0.1:{port}")
    (tmp_path / "inferwire.toml").write_text(text)
    made = subprocess.run(
        [sys.executable, "-m", "inferwire_server.cli", "key", "alice"],
        check=True,
        capture_output=True,
        text=True,
    )
    (key,) = [line for line in made.stderr.splitlines() if line.startswith("iw_")]
    credentials = grpc.ssl_channel_credentials((prepared / "secrets/authority/ca.pem").read_bytes())

    def ask(token: str | None) -> str:
        with Client(f"localhost:{port}", tls=credentials, token=token) as client:
            try:
                client.complete(prompt="Once upon a time", max_tokens=4)
                return "answered"
            except InferwireError as error:
                return error.reason or error.code.name

    def until(token: str | None, expected: str) -> None:
        while ask(token) != expected:
            assert process.poll() is None

    with serving(tmp_path / "inferwire.toml", port) as process:
        until(None, "TOKEN_MISSING")
        until(key, "TOKEN_INVALID")
        with (prepared / "secrets/inferwire/keys.toml").open("a") as file:
            file.write(made.stdout)
        until(key, "answered")
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(45)
