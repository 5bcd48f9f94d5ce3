"""The server's channel arguments. A test proves that each key exists in gRPC's core, which ignores unknown ones."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 32 << 20
# A call that began in a connection's last moment still has time to tell its end.
_GRACE_SECONDS = 60.0

Options = tuple[tuple[str, int], ...]

OPTIONS: Options = (
    # A second server on the port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished is found within 40 s. The transport has pings of its own, and while one is on its way none of
    # keepalive's is sent: without a limit of its own such a ping is waited for a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping every 5 s through a long silent prompt; strikes would end such connections (GOAWAY
    # too_many_pings).
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
)


def connection_age(max_seconds: float, max_completion_seconds: float) -> Options:
    """Returns how long a connection is used for new calls, and how long those that it has may run on: as long as any answer.

    Connections end now and then, so that clients look for new replicas, and spread over them behind a plain TCP balancer.
    Without a limit where `max_seconds` is 0.
    """
    if not max_seconds:
        return ()
    return (
        ("grpc.max_connection_age_ms", _milliseconds(max_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(max_completion_seconds + _GRACE_SECONDS)),
    )


def _milliseconds(seconds: float) -> int:
    # The core's numbers have 31 bits; the largest means never.
    return min(max(1, round(seconds * 1000)), (1 << 31) - 1)
