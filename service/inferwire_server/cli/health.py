"""`inferwire health`: whether the server is ready, for people and for probes. Its exit code is the answer."""

from __future__ import annotations

import json
import sys

import click

from inferwire.v1.inference_pb2 import HealthResponse
from inferwire.v1.models_pb2 import ModelState
from inferwire_server.cli.connection import EXIT_REFUSED, Connection, connects
from inferwire_server.cli.terminal import enum_word, print_json, visible

PROBE_TIMEOUT_SECONDS = 5.0


@click.command()
@click.option(
    "--service",
    metavar="NAME",
    help="Ask the standard health service instead: liveness, readiness or model/NAME.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@connects
def health(connection: Connection, service: str | None, as_json: bool) -> None:
    """Say whether the server is ready and how its models are.

    Exit codes: 0 ready, 1 not ready, 3 no server there. In a container's probe use --service liveness or readiness.
    """
    ready = ask(connection, as_json) if service is None else probe(connection, service, as_json)
    if not ready:
        sys.exit(EXIT_REFUSED)


def ask(connection: Connection, as_json: bool) -> bool:
    """Shows what the server says of itself, and returns whether it is ready."""
    with connection.client() as client:
        response = client.health(timeout=PROBE_TIMEOUT_SECONDS)
    if as_json:
        print_json(response)
    else:
        click.echo(visible(describe(response)))
    return response.ready


def describe(response: HealthResponse) -> str:
    """Returns the server's state as a line, and a line for each model."""
    word = "draining" if response.draining else "ready" if response.ready else "not ready"
    lines = [f"{word}: inferwire {response.version}, up {response.uptime.seconds} s"]
    for model in response.models:
        known = model.state in ModelState.values()
        state = enum_word(ModelState.Name(model.state), "MODEL_STATE_") if known else "unknown"
        running = model.streams_in_flight - model.queue_length
        lines.append(
            f"  {model.name}: {state}, {running} of {model.parallel_sequences} running, "
            f"{model.queue_length} of {model.queue_capacity} queued"
            f"{', required' if model.required else ''}"
        )
    return "\n".join(lines)


def probe(connection: Connection, service: str, as_json: bool) -> bool:
    """Asks grpc.health.v1.Health, as an orchestrator does, and returns whether it says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from inferwire import InferwireError

    name = "" if service == "readiness" else service
    with connection.client() as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        try:
            response = stub.Check(
                health_pb2.HealthCheckRequest(service=name),
                timeout=PROBE_TIMEOUT_SECONDS,
                metadata=connection.metadata,
            )
        except grpc.RpcError as error:
            raise InferwireError.of(error) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    click.echo(json.dumps({"service": name, "status": status}) if as_json else f"{service}: {status}")
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
