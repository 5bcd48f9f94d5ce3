"""Where a client calls and how: the decisions that both doors share, made before any channel exists."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
from typing import Any

import grpc

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 300.0

_INFERENCE_SERVICE = "inferwire.v1.InferenceService"

# gRPC itself retries by this, only while nothing of the answer has come, and it obeys the server's
# grpc-retry-pushback-ms. Loads are not in it: to repeat one is the caller's decision.
_SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{"service": _INFERENCE_SERVICE}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
# The health name "" is the readiness of the whole server.
_BALANCING = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A long prompt is silent for a while: the pings keep the connection known to what lies between, and find it dead.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The transport has pings of its own, and while one is on its way none of keepalive's is sent: without a limit of
    # its own such a ping is waited for a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # What gRPC keeps of a call to send it again; by its default of 256 KiB a long prompt is never retried.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server, the way to it, and what every call carries."""

    target: str
    #: None: plain text.
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]
    default_timeout: float
    channel_options: tuple[tuple[str, int | str], ...]

    @classmethod
    def of(
        cls,
        target: str,
        token: str | None,
        tls: grpc.ChannelCredentials | bool | None,
        default_timeout: float,
        *,
        balance: bool = False,
    ) -> Endpoint:
        """Decides. `tls` None means plain text to this machine and TLS to any other."""
        if tls is None:
            tls = not is_local(target)
        if tls is True:
            credentials: grpc.ChannelCredentials | None = grpc.ssl_channel_credentials()
        else:
            credentials = tls or None
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = dict(CHANNEL_OPTIONS)
        if balance:
            options["grpc.service_config"] = json.dumps({**_SERVICE_CONFIG, **_BALANCING})
        return cls(target, credentials, metadata, default_timeout, tuple(options.items()))

    def timeout(self, seconds: float | None) -> float | None:
        """Returns a call's deadline as grpc takes it: None for the default, infinity for no deadline."""
        chosen = self.default_timeout if seconds is None else seconds
        return None if math.isinf(chosen) else chosen

    def call_metadata(self, request_id: str | None) -> tuple[tuple[str, str], ...]:
        """Returns a call's metadata; without a `request_id` the server makes one."""
        return self.metadata if request_id is None else (*self.metadata, ("x-request-id", request_id))

    def __repr__(self) -> str:
        way = "plain text" if self.credentials is None else "TLS"
        return f"{self.target} | {way} | {'token' if self.metadata else 'no token'}"


def is_local(target: str) -> bool:
    """Returns whether a gRPC target is this machine by its very name: a Unix socket, localhost, a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    # Also with a scheme, such as dns:///localhost:50051 and ipv4:127.0.0.1:50051,127.0.0.1:50052.
    address = target.rsplit("/", 1)[-1]
    address = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
    return all(_is_loopback(each) for each in address.split(","))


def _is_loopback(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].split("]", 1)[0]
    else:
        host = address.rsplit(":", 1)[0] if address.count(":") == 1 else address
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
