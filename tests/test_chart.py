"""The Helm chart: what it renders is valid for every Kubernetes that it names, agrees with itself, and starts the server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jsonschema
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferwire import AsyncClient, user
from inferwire_server import config, health, server

from . import charts
from .certificates import issued
from .charts import CHART, at, only, rendered

# The first one builds helm.
pytestmark = pytest.mark.timeout(1200)

PEERS = [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]
EVERYTHING: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "config": {
        "default_model": "qwen",
        "lame_duck_seconds": 7.5,
        "drain_seconds": 100,
        "models": {
            "qwen": {"path": "/models/qwen.gguf", "config": {"context_length": 8192, "lora_adapters": []}}
        },
        "backends": {
            "openai": {
                "type": "openai",
                "api_key_env": "OPENAI_API_KEY",
                "models": ["small"],
                "connect_seconds": 2.5,
            }
        },
        "routes": {"fast": {"candidates": ["qwen", {"model": "openai/small", "weight": 3}]}},
        "engine": {"queue_capacity": 16},
    },
    "tls": {"enabled": True, "secretName": "tls", "clientCA": {"enabled": True, "secretName": "ca"}},
    "keys": {"secretName": "keys"},
    "providerKeys": {"OPENAI_API_KEY": {"secretName": "providers", "key": "openai"}},
    "admin": {"exposed": True},
    "web": {"enabled": True, "origins": ["https://app.example.com"]},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "modelVolume": {"enabled": True, "claim": {"create": True, "storageClassName": "fast"}},
    "service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}, "appProtocol": "tls"},
    "headlessService": {"annotations": {"a/b": "c"}},
    "autoscaling": {"enabled": True, "minReplicas": 2},
    "networkPolicy": {
        "clients": PEERS,
        "metrics": PEERS,
        "admin": PEERS,
        "egress": {
            "rules": [
                {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
            ]
        },
    },
    "serviceAccount": {"annotations": {"a/b": "c"}},
    "podAnnotations": {"a/b": "c"},
    "podLabels": {"team": "inference"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "inference", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
            }
        }
    },
    "priorityClassName": "high",
    "runtimeClassName": "gvisor",
    "extraEnv": [{"name": "INFERWIRE_LOG_LEVEL", "value": "debug"}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "extra", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "initContainers": [{"name": "first", "image": "busybox:1", "args": ["true"]}],
}
NOTHING: dict[str, Any] = {
    "admin": {"separate": False},
    "metrics": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
    "topologySpreadConstraints": [],
    "resources": {"requests": None, "limits": None},
}
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "default": ((), {}),
    "gpu": (("gpu.yaml",), {}),
    "mtls": (("mtls.yaml",), {}),
    "everything": ((), EVERYTHING),
    "nothing": ((), NOTHING),
}
each_variant = pytest.mark.parametrize(("files", "values"), VARIANTS.values(), ids=VARIANTS)

# The oldest that the chart takes, and the newest that the schemas know.
OLDEST = (
    yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"].removeprefix(">=").removesuffix("-0")
)
NEWEST = f"{'.'.join(kubernetes_validate.latest_version().split('.')[:2])}.0"


def pod(documents: list[charts.Document]) -> Any:
    return only(documents, "Deployment")["spec"]["template"]["spec"]


def container(documents: list[charts.Document]) -> Any:
    (found,) = pod(documents)["containers"]
    return found


def settings_text(documents: list[charts.Document]) -> str:
    text = only(documents, "ConfigMap")["data"]["inferwire.toml"]
    assert isinstance(text, str)
    return text


def environment(documents: list[charts.Document]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(documents)["env"] if "value" in each}


def load(documents: list[charts.Document], folder: pathlib.Path) -> config.Settings:
    """Returns the settings that the server would have in the pod; volumes lie in a folder of the test."""
    (folder / "models").mkdir(exist_ok=True)
    text = (
        settings_text(documents).replace('"/etc/', f'"{folder}/etc/').replace('"/models', f'"{folder}/models')
    )
    file = folder / "inferwire.toml"
    file.write_text(text)
    return config.load(file, environment=environment(documents))


@each_variant
def test_the_linter_has_no_complaint(files, values):
    """Strictly: a warning counts."""
    options = [option for file in files for option in ("--values", str(CHART / "values" / file))]
    printed = charts.run("lint", "--strict", CHART, *options, values=values)
    assert "0 chart(s) failed" in printed


@each_variant
@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_every_document_is_valid(files, values, kubernetes):
    """By the schemas of Kubernetes, which refuse what they do not name; a custom resource by its own."""
    documents = rendered(values, files=files, kubernetes=kubernetes)
    assert {"ConfigMap", "Deployment", "Service"} <= {each["kind"] for each in documents}
    for document in documents:
        if document["kind"] == "ServiceMonitor":
            validate_service_monitor(document)
        else:
            kubernetes_validate.validate(document, kubernetes, strict=True)


def validate_service_monitor(document: charts.Document) -> None:
    folder = charts.module_folder(charts.PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    definition = yaml.safe_load((folder / "monitoring.coreos.com_servicemonitors.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    schema = charts.strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(document, schema)


def test_the_schemas_would_find_a_mistake():
    """A word that does not exist is refused, in what Kubernetes defines and in what the operator does."""
    document = only(rendered(), "Deployment")
    container([document])["livenesProbe"] = container([document]).pop("livenessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, NEWEST, strict=True)
    monitor = only(rendered(EVERYTHING), "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["intervall"] = monitor["spec"]["endpoints"][0].pop("interval")
    with pytest.raises(jsonschema.ValidationError):
        validate_service_monitor(monitor)


@each_variant
def test_the_settings_are_those_that_the_server_reads(files, values, tmp_path):
    """inferwire.toml loads, with the pod's environment, and whole numbers are whole."""
    documents = rendered(values, files=files)
    settings = load(documents, tmp_path)
    assert not re.search(r"= -?\d+\.0\b|e\+", settings_text(documents))
    assert f"0.0.0.0:{container(documents)['ports'][0]['containerPort']}" == settings.address
    assert bool(settings.tls_certificate) is not settings.insecure
    for name, model in settings.models.items():
        assert (
            name in (values or yaml.safe_load((CHART / "values" / files[0]).read_text()))["config"]["models"]
        )
        model.load_config()


def test_every_value_of_the_settings_arrives(tmp_path):
    """Tables, lists and tables in lists, as they were given."""
    told = tomllib.loads(settings_text(rendered(EVERYTHING)))
    given = EVERYTHING["config"]
    assert given == {key: told[key] for key in given}
    assert ["https://app.example.com"] == told["web_origins"]


@each_variant
def test_the_pod_ends_after_the_drain_and_not_before(files, values, tmp_path):
    """Kubernetes kills later than the server ends itself, however lame duck and drain are set."""
    documents = rendered(values, files=files)
    settings = load(documents, tmp_path)
    longest = settings.lame_duck_seconds + settings.drain_seconds
    longest += server.STOP_GRACE_SECONDS + server.WATCHDOG_SECONDS
    assert longest < pod(documents)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 45), ({"drain_seconds": 600}, 620), ({"lame_duck_seconds": 0.2, "drain_seconds": 0}, 16)],
)
def test_the_grace_period_follows_the_settings(settings, expected):
    """Lame duck, drain and a margin, in whole seconds."""
    assert expected == pod(rendered({"config": settings}))["terminationGracePeriodSeconds"]


@each_variant
def test_probes_ask_what_the_server_answers(files, values, tmp_path):
    """On the port that only has health, by names that health.py has, and liveness never by readiness."""
    documents = rendered(values, files=files)
    settings = load(documents, tmp_path)
    probes = {
        name: container(documents)[f"{name}Probe"]["grpc"] for name in ("startup", "liveness", "readiness")
    }
    port = config.Address.parse("probe_address", settings.probe_address).port
    assert {port} == {probe["port"] for probe in probes.values()}
    assert health.LIVENESS == probes["startup"]["service"] == probes["liveness"]["service"]
    assert probes["readiness"]["service"] in health.READINESS
    (number,) = (each["containerPort"] for each in container(documents)["ports"] if each["name"] == "probe")
    assert port == number


@each_variant
def test_the_ports_agree(files, values):
    """A service, a policy and a monitor lead only to ports that there are."""
    documents = rendered(values, files=files)
    names = {each["name"] for each in container(documents)["ports"]}
    services = [each for each in documents if each["kind"] == "Service"]
    assert 2 == len(services)
    for service in services:
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= names
        assert "probe" not in {each["name"] for each in service["spec"]["ports"]}
    for policy in (each for each in documents if each["kind"] == "NetworkPolicy"):
        numbers = {each["containerPort"] for each in container(documents)["ports"]}
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= numbers
    for monitor in (each for each in documents if each["kind"] == "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (each for each in services if labels <= each["metadata"]["labels"].items())
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
            each["name"] for each in service["spec"]["ports"]
        }


@each_variant
def test_selectors_find_the_pods_of_this_release_and_no_others(files, values):
    """The labels of the pods hold those of every selector, and the test's own pod has not all of them."""
    documents = rendered(values, files=files)
    labels = only(documents, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        at(each, "spec.selector.matchLabels") or at(each, "spec.podSelector.matchLabels")
        for each in documents
        if each["kind"] in ("Deployment", "PodDisruptionBudget", "NetworkPolicy")
    ]
    selectors += [each["spec"]["selector"] for each in documents if each["kind"] == "Service"]
    tests = [each["metadata"]["labels"].items() for each in documents if each["kind"] == "Pod"]
    for selector in selectors:
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} == selector.keys()
        assert selector.items() <= labels
        assert not any(selector.items() <= each for each in tests)


@each_variant
def test_the_pod_may_do_little(files, values):
    """No root, no capabilities, no writable root, no token; nothing that it mounts can be written."""
    documents = rendered(values, files=files)
    spec = pod(documents)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert {"type": "RuntimeDefault"} == spec["securityContext"]["seccompProfile"]
    for each in [*spec["containers"], *(pod for pod in documents if pod["kind"] == "Pod")]:
        context = (
            each["securityContext"]
            if "securityContext" in each
            else each["spec"]["containers"][0]["securityContext"]
        )
        assert {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == context
    own = [each for each in container(documents)["volumeMounts"] if each["name"] != "extra"]
    assert all(each["readOnly"] for each in own)
    assert {each["name"] for each in container(documents)["volumeMounts"]} == {
        each["name"] for each in spec.get("volumes", [])
    }
    # A file that is mounted by itself never changes, and keys and certificates must.
    assert not any("subPath" in each for each in own)


CASES: list[tuple[dict[str, Any], str, str, Any]] = [
    ({}, "Deployment", "spec.replicas", 1),
    ({"replicas": 3}, "Deployment", "spec.replicas", 3),
    ({"autoscaling": {"enabled": True}}, "Deployment", "spec.replicas", None),
    ({"image": {"tag": "x"}}, "Deployment", "spec.template.spec.containers[0].image", "inferwire:x"),
    (
        EVERYTHING,
        "Deployment",
        "spec.template.spec.containers[0].image",
        "inferwire@sha256:" + "0" * 64,
    ),
    (
        {"autoscaling": {"enabled": True}},
        "HorizontalPodAutoscaler",
        "spec.metrics[0].pods",
        {
            "metric": {"name": "inferwire_requests_waiting"},
            "target": {"type": "AverageValue", "averageValue": "4"},
        },
    ),
    ({}, "NetworkPolicy", "spec.ingress[0].from", [{"podSelector": {}}]),
    (EVERYTHING, "NetworkPolicy", "spec.ingress[0].from", PEERS),
    ({}, "NetworkPolicy", "spec.ingress[2]", None),
    (EVERYTHING, "NetworkPolicy", "spec.ingress[2].ports[0].port", 9464),
    (EVERYTHING, "NetworkPolicy", "spec.ingress[3].ports[0].port", 50053),
    (EVERYTHING, "NetworkPolicy", "spec.egress[1].ports[0].port", 443),
    ({"networkPolicy": {"egress": {"restricted": False}}}, "NetworkPolicy", "spec.policyTypes", ["Ingress"]),
    ({"networkPolicy": {"egress": {"restricted": False}}}, "NetworkPolicy", "spec.egress", None),
    ({}, "Service", "spec.ports[0].appProtocol", "kubernetes.io/h2c"),
    (EVERYTHING, "Service", "spec.ports[0].appProtocol", "tls"),
    (
        {"tls": {"enabled": True, "secretName": "tls"}},
        "Service",
        "spec.ports[0].appProtocol",
        None,
    ),
    (
        {"modelVolume": {"enabled": True, "source": {"nfs": {"server": "s", "path": "/p"}}}},
        "Deployment",
        "spec.template.spec.volumes[1]",
        {"name": "models", "nfs": {"server": "s", "path": "/p"}},
    ),
    (
        {"modelVolume": {"enabled": True, "existingClaim": "mine"}},
        "Deployment",
        "spec.template.spec.volumes[1].persistentVolumeClaim",
        {"claimName": "mine", "readOnly": True},
    ),
    (
        {},
        "Deployment",
        "spec.template.spec.topologySpreadConstraints[0].labelSelector.matchLabels",
        {"app.kubernetes.io/name": "inferwire", "app.kubernetes.io/instance": "rel"},
    ),
    ({}, "PodDisruptionBudget", "spec.maxUnavailable", 1),
]


@pytest.mark.parametrize(("values", "kind", "path", "expected"), CASES)
def test_a_value_has_its_effect(values, kind, path, expected):
    """A table: values, and where they show."""
    assert expected == at(only(rendered(values), kind), path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replcas": 2}, "replcas"),
        ({"tls": {"enabled": True}}, "secretName"),
        ({"tls": {"clientCA": {"enabled": True}}}, "clientCA"),
        ({"config": {"address": "0.0.0.0:1"}}, "config.address is written by the chart"),
        ({"config": {"keys_file": "x"}}, "config.keys_file is written by the chart"),
        ({"ports": {"grpc": 80}}, "grpc"),
        ({"modelVolume": {"enabled": True}}, "existingClaim, claim.create or source"),
        ({"admin": {"separate": False, "exposed": True}}, "separate"),
        ({"networkPolicy": {"clients": [{}]}}, "clients"),
        ({"graceMarginSeconds": 1}, "graceMarginSeconds"),
        ({"ports": {"probe": 50051}}, "each number once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(values, words):
    """At the template, by name; not by a pod that does not start."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rendered(values)
    assert words in caught.value.stderr


def test_new_settings_restart_the_pods():
    """The pods' template changes with the settings, and with nothing else of the values."""

    def template(values: dict[str, Any]) -> str:
        return json.dumps(only(rendered(values), "Deployment")["spec"]["template"])

    assert template({}) != template({"config": {"log_level": "debug"}})
    assert template({}) == template({"replicas": 5, "networkPolicy": {"enabled": False}})


@pytest.mark.parametrize(
    ("files", "values", "words", "absent"),
    [
        ((), {}, ["no keys", "in the clear", "demo model"], ["lets the pods reach none"]),
        (("mtls.yaml",), {}, ["rel-inferwire-headless"], ["WARNING"]),
        (
            (),
            {"config": {"backends": {"b": {"type": "openai"}}}},
            ["lets the pods reach none"],
            ["demo model"],
        ),
    ],
)
def test_the_notes_say_what_is_open(files, values, words, absent):
    """Whoever installs reads what is not protected, and nothing of it when all is."""
    options = [option for file in files for option in ("--values", str(CHART / "values" / file))]
    text = charts.run("install", "rel", CHART, "--dry-run=client", *options, values=values)
    notes = text[text.index("NOTES:") :]
    assert [] == [each for each in words if each not in notes]
    assert [] == [each for each in absent if each in notes]


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


@contextlib.asynccontextmanager
async def started(
    documents: list[charts.Document], folder: pathlib.Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Yields the server, started as the pod's container would be, the volumes lying in a folder of the test."""
    load(documents, folder)
    arguments = [
        each.replace("/etc/inferwire/inferwire.toml", str(folder / "inferwire.toml"))
        for each in container(documents)["args"]
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "inferwire_server.cli",
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment(documents)},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until(documents: list[charts.Document], name: str, expected: int) -> None:
    """Asks as the kubelet does until a probe says what is expected; the test's timeout is the guard."""
    probe = container(documents)[f"{name}Probe"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{probe['grpc']['port']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                response = await stub.Check(request, timeout=probe["timeoutSeconds"], wait_for_ready=True)
                if response.status == expected:
                    return


@pytest.mark.parametrize("files", [(), ("mtls.yaml",)], ids=["default", "mtls"])
async def test_the_server_runs_as_rendered_and_answers_the_probes(files, tmp_path):
    """In the clear and behind mTLS alike: live, then ready, an answer, then live but not ready, and exit code 0."""
    ports = dict(zip(("grpc", "probe", "admin", "metrics"), free_ports(4), strict=True))
    values = {
        "listenHost": "127.0.0.1",
        "ports": ports,
        "config": {"lame_duck_seconds": 1, "drain_seconds": 5},
    }
    documents = rendered(values, files=files)
    credentials = write_secrets(tmp_path) if files else None
    async with started(documents, tmp_path) as process:
        await until(documents, "startup", health.SERVING)
        await until(documents, "readiness", health.SERVING)
        async with AsyncClient(
            f"127.0.0.1:{ports['grpc']}", tls=credentials or False, token="secret" if files else None
        ) as client:
            answer = await client.complete(
                chat=[user("What is the capital of France?")], max_tokens=32, temperature=0
            )
        assert "Paris" in answer.message.parts[0].text
        process.send_signal(signal.SIGTERM)
        await until(documents, "readiness", health.NOT_SERVING)
        await until(documents, "liveness", health.SERVING)
        async with asyncio.timeout(pod(documents)["terminationGracePeriodSeconds"]):
            assert 0 == await process.wait()


def write_secrets(folder: pathlib.Path) -> grpc.ChannelCredentials:
    """Writes what the secrets hold to where they would be mounted; returns what a client shows."""
    key, certificate, authority = issued(folder, "server")
    client_key, client_certificate, client_authority = issued(folder, "client")
    for volume, files in {
        "inferwire-tls": {"tls.crt": certificate.read_bytes(), "tls.key": key.read_bytes()},
        "inferwire-client-ca": {"ca.crt": client_authority.read_bytes()},
        "inferwire-keys": {
            "keys.toml": b'[keys.test]\nsha256 = "%s"\nscopes = ["infer"]\n'
            % hashlib.sha256(b"secret").hexdigest().encode()
        },
    }.items():
        (folder / "etc" / volume).mkdir(parents=True)
        for name, content in files.items():
            (folder / "etc" / volume / name).write_bytes(content)
    return grpc.ssl_channel_credentials(
        authority.read_bytes(), client_key.read_bytes(), client_certificate.read_bytes()
    )
