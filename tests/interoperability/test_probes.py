"""What orchestrators see: the kubelet's own gRPC probe and grpc_health_probe, in every state of a server."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json

import pytest

from inferwire_server.config import Settings
from inferwire_server.server import Server
from tests.certificates import Authority

from . import servers, tools

pytestmark = [pytest.mark.usefixtures("built"), pytest.mark.timeout(120, func_only=True)]

KUBELET = "./kubeletprobe"
HEALTH_PROBE = "github.com/grpc-ecosystem/grpc-health-probe"
READINESS = ("", "inferwire.v1.InferenceService")
NAMES = ("liveness", *READINESS, "model/demo", "model/nope")
# A guard against a hang where an answer must come, and what the kubelet takes by default where none can.
PATIENCE_SECONDS = 20
DEFAULT_SECONDS = 1


class Verdict(enum.Enum):
    """What a probe says: for the kubelet its result and output, for grpc_health_probe its exit code and words."""

    HEALTHY = ("success", "service healthy", 0, "status: SERVING")
    UNHEALTHY = (
        "failure",
        'service unhealthy (responded with "NOT_SERVING")',
        4,
        'service unhealthy (responded with "NOT_SERVING")',
    )
    UNKNOWN = (
        "failure",
        "error: health rpc probe failed: rpc error: code = NotFound",
        3,
        "error: health rpc failed: rpc error: code = NotFound",
    )
    REFUSED = (
        "failure",
        "error: health rpc probe failed: rpc error: code = Unauthenticated",
        3,
        "error: health rpc failed: rpc error: code = Unauthenticated",
    )
    NO_ANSWER = (
        "failure",
        "timeout: failed to connect service",
        2,
        "timeout: failed to connect service",
    )


@pytest.fixture(scope="module")
def built() -> None:
    """Builds both probes, which may take longer than a test."""
    tools.go(KUBELET)
    tools.go(HEALTH_PROBE)


async def kubelet(port: int, service: str, seconds: int) -> Verdict:
    """Asks as the kubelet does."""
    command = (tools.go(KUBELET), "-port", str(port), "-service", service, "-timeout", f"{seconds}s")
    code, output, errors = await tools.run(*command)
    assert 0 == code, errors
    told = json.loads(output)
    for verdict in Verdict:
        result, words, _, _ = verdict.value
        if told["result"] == result and told["output"].startswith(words):
            return verdict
    raise AssertionError(told)


async def health_probe(port: int, service: str, seconds: int, *flags: str) -> Verdict:
    """Asks with grpc_health_probe, which images carry for orchestrators that can only start a program."""
    code, output, errors = await tools.run(
        tools.go(HEALTH_PROBE), f"-addr=127.0.0.1:{port}",
        f"-service={service}", f"-connect-timeout={seconds}s", f"-rpc-timeout={seconds}s", *flags,
    )  # fmt: skip
    for verdict in Verdict:
        _, _, wanted, words = verdict.value
        if code == wanted and words in output + errors:
            return verdict
    raise AssertionError((code, output, errors))


async def verdicts(probe, port: int, seconds: int) -> dict[str, Verdict]:
    """Returns what a probe says of every name."""
    told = await asyncio.gather(*(probe(port, name, seconds) for name in NAMES))
    return dict(zip(NAMES, told, strict=True))


def expected(
    *, liveness: Verdict, readiness: Verdict, model: Verdict, unknown: Verdict
) -> dict[str, Verdict]:
    return {
        "liveness": liveness,
        **dict.fromkeys(READINESS, readiness),
        "model/demo": model,
        "model/nope": unknown,
    }


READY = expected(
    liveness=Verdict.HEALTHY, readiness=Verdict.HEALTHY, model=Verdict.HEALTHY, unknown=Verdict.UNKNOWN
)
ALIVE = expected(
    liveness=Verdict.HEALTHY, readiness=Verdict.UNHEALTHY, model=Verdict.UNHEALTHY, unknown=Verdict.UNKNOWN
)
LOST = dict.fromkeys(NAMES, Verdict.NO_ANSWER)


@pytest.mark.parametrize(
    ("state", "told", "seconds"),
    [
        (servers.ready, READY, PATIENCE_SECONDS),
        (servers.loading, ALIVE, PATIENCE_SECONDS),
        (servers.failed, ALIVE, PATIENCE_SECONDS),
        (servers.engine_killed, ALIVE, PATIENCE_SECONDS),
        (servers.draining, ALIVE, PATIENCE_SECONDS),
        # A pod that ends is asked for its liveness no more, so that nobody is let in hurts nobody.
        (servers.closed, LOST, DEFAULT_SECONDS),
        (servers.frozen, LOST, DEFAULT_SECONDS),
        (servers.gone, LOST, DEFAULT_SECONDS),
    ],
    ids=["ready", "loading", "failed", "engine killed", "draining", "closed", "frozen", "gone"],
)
async def test_probes_tell_the_state_of_a_server(state, told, seconds, tmp_path):
    """Alive is who moves, ready is who should get calls; no state of a model makes an orchestrator kill the server."""
    async with state(tmp_path) as server:
        assert told == await verdicts(kubelet, server.port, seconds)
        assert told == await verdicts(health_probe, server.port, seconds)


async def test_probes_see_a_server_recover(tmp_path):
    """What held a state lets go: the model is loaded, the next engine starts, the stopped server goes on."""
    async with servers.ready(tmp_path) as server:
        with servers.stopped(server.process.pid):
            assert Verdict.NO_ANSWER == await kubelet(server.port, "liveness", DEFAULT_SECONDS)
        assert READY == await verdicts(kubelet, server.port, PATIENCE_SECONDS)
    async with servers.serving("--model", f"demo={servers.DEMO}") as server:
        with servers.stopped(await server.engine()):
            assert Verdict.UNHEALTHY == await kubelet(server.port, "", PATIENCE_SECONDS)
        await server.until("", servers.SERVING)
        assert READY == await verdicts(kubelet, server.port, PATIENCE_SECONDS)


async def test_probes_of_a_server_that_wants_tls_and_keys(tmp_path):
    """Liveness and readiness need no key, the state of a model does. The kubelet knows no TLS and has a port for itself."""
    authority = Authority(tmp_path, "authority")
    key, certificate = authority.issue("server")
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[keys.probe]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\nscopes = ["health"]\n'
    )
    settings = Settings(
        address="127.0.0.1:0", scripted=True, probe_address="127.0.0.1:0", keys_file=str(keys),
        tls_certificate=str(certificate), tls_key=str(key),
    )  # fmt: skip
    server = Server(settings)
    await server.start()
    try:
        apart = server.other_addresses["Probes"].port
        for name in ("liveness", *READINESS):
            assert Verdict.HEALTHY == await kubelet(apart, name, PATIENCE_SECONDS)
        assert Verdict.REFUSED == await kubelet(apart, "model/scripted", PATIENCE_SECONDS)
        assert Verdict.NO_ANSWER == await kubelet(server.port, "liveness", DEFAULT_SECONDS)

        tls = ("-tls", f"-tls-ca-cert={authority.ca}")
        bearer = "-rpc-header=authorization: Bearer secret"
        for name in ("liveness", *READINESS):
            assert Verdict.HEALTHY == await health_probe(server.port, name, PATIENCE_SECONDS, *tls)
        assert Verdict.REFUSED == await health_probe(server.port, "model/scripted", PATIENCE_SECONDS, *tls)
        assert Verdict.HEALTHY == await health_probe(
            server.port, "model/scripted", PATIENCE_SECONDS, *tls, bearer
        )
    finally:
        await server.stop(drain_seconds=0)
