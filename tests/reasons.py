"""What the contract's comments say about each reason, and what a status weighs as it travels."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import grpc

PROTO = Path(__file__).resolve().parent.parent / "proto/inferwire/v1/error_reason.proto"
MAX_TRAILER_BYTES = 6 << 10
_CODES = re.compile(r"^Codes: (\w+), (\w+)\. Retry: (yes|no)\.$", re.MULTILINE)


def documented() -> Iterator[tuple[str, str]]:
    """The name and the comment of each value of the enum."""
    comment: list[str] = []
    for line in PROTO.read_text().splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        value = re.fullmatch(r"ERROR_REASON_(\w+) = \d+;", line)
        if value and value[1] != "UNSPECIFIED":
            yield value[1], "\n".join(comment)
        comment = []


DOCUMENTED = dict(documented())


def codes_of(reason: str) -> tuple[grpc.StatusCode, grpc.StatusCode, bool]:
    """Returns the documented codes of a reason, before and after the first delta, and whether a retry may help."""
    found = _CODES.search(DOCUMENTED[reason])
    assert found, f"the comment of {reason} tells no codes"
    return grpc.StatusCode[found[1]], grpc.StatusCode[found[2]], found[3] == "yes"


def trailer_bytes(code: grpc.StatusCode, message: str, metadata: Sequence[tuple[str, str | bytes]]) -> int:
    """Returns the bytes of a status's trailers as HTTP/2 counts them: name, value and 32 for each."""
    headers = {
        "grpc-status": str(code.value[0]),
        "grpc-message": quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}"),
    }
    for key, value in metadata:
        headers[key] = value if isinstance(value, str) else base64.b64encode(value).decode()
    return sum(len(key) + len(value) + 32 for key, value in headers.items())
