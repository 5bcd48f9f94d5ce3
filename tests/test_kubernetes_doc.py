"""docs/kubernetes.md: its blocks are taken out and tried, as far as that is possible without a cluster."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import grpc
import jsonschema
import kubernetes_validate
import pytest
import yaml

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub

from . import charts
from .serving import demo, running

TEXT = (charts.ROOT / "docs" / "kubernetes.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
VALUES = [block for block in YAML if block.startswith("# values.yaml\n")]
(PYTHON,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(SERVICE_CONFIG,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
CLUSTER_TARGET = "dns:///inferwire-headless.inference.svc:50051"


def block_with(words: str) -> Any:
    (found,) = [block for block in YAML if words in block]
    return yaml.safe_load(found)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", VALUES, ids=lambda block: block.splitlines()[1].split(":")[0])
def test_the_chart_takes_these_values(block):
    """And makes valid documents of them."""
    for document in charts.rendered(yaml.safe_load(block)):
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.timeout(1200)
def test_the_probes_are_those_of_the_chart():
    """What stands here is a part of what is rendered."""
    (container,) = charts.only(charts.rendered(), "Deployment")["spec"]["template"]["spec"]["containers"]
    for name, probe in block_with("startupProbe").items():
        assert probe.items() <= container[name].items()


@pytest.mark.timeout(600)
def test_the_route_keeps_its_schema():
    """The gateway's own, and it leads to a service and a port that the chart makes."""
    route = block_with("kind: GRPCRoute")
    folder = charts.module_folder(charts.GATEWAY_API) / "config" / "crd" / "standard"
    definition = yaml.safe_load((folder / "gateway.networking.k8s.io_grpcroutes.yaml").read_text())
    schema = next(
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1"
    )
    schema = charts.strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(route, schema)
    (rule,) = route["spec"]["rules"]
    assert (
        pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
        == rule["matches"][0]["method"]["service"]
    )


async def test_the_python_lines_run():
    """With nothing changed but the target."""
    assert CLUSTER_TARGET in PYTHON
    async with running(models={"demo": demo()}) as (server, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PYTHON.replace(CLUSTER_TARGET, f"127.0.0.1:{server.port}"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert 0 == process.returncode
    assert len(output.split()) > 3


async def test_such_a_channel_takes_turns_and_leaves_out_who_drains():
    """Two servers: each answers half of the calls; the one that drains gets no more, and no call fails."""
    async with running() as (first, _), running() as (second, _):
        target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
        options = [("grpc.service_config", SERVICE_CONFIG)]
        async with grpc.aio.insecure_channel(target, options) as channel:
            stub = InferenceServiceStub(channel)

            async def ask() -> tuple[int, int]:
                before = first.registry.leases_created, second.registry.leases_created
                await stub.Complete(pb.CompleteRequest(prompt="hello", model="scripted"), wait_for_ready=True)
                return first.registry.leases_created - before[0], second.registry.leases_created - before[1]

            # Until both connections are there, the first one answers alone.
            while (await ask(), await ask()) not in [((1, 0), (0, 1)), ((0, 1), (1, 0))]:
                pass
            assert {(1, 0), (0, 1)} == {await ask(), await ask()}
            await first.health.drain()
            while (await ask(), await ask()) != ((0, 1), (0, 1)):
                pass
            assert {(0, 1)} == {await ask() for _ in range(10)}
