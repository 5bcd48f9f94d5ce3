"""Failures as they travel: one table of codes, the contract's words about it, and trailers that fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inferwire.v1.error_reason_pb2 import ErrorReason
from inferwire_server import errors, status, wire
from tests.reasons import DOCUMENTED, MAX_TRAILER_BYTES, trailer_bytes

LEAVES = errors.leaves()
each_leaf = pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.reason)


def details_of(answer: status.Status) -> list[Message]:
    kinds = (
        error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest,
        error_details_pb2.ResourceInfo,
    )  # fmt: skip
    packed = status_pb2.Status.FromString(dict(answer.trailing_metadata)["grpc-status-details-bin"])
    assert (answer.code.value[0], answer.message) == (packed.code, packed.message)
    details = []
    for slot in packed.details:
        (detail,) = (kind() for kind in kinds if slot.Is(kind.DESCRIPTOR))
        assert slot.Unpack(detail)
        details.append(detail)
    return details


def detail_of(answer: status.Status, kind: type[Any]) -> Any:
    return next((detail for detail in details_of(answer) if isinstance(detail, kind)), None)


def wire_bytes(answer: status.Status) -> int:
    return trailer_bytes(answer.code, answer.message, answer.trailing_metadata)


class TestTheTable:
    def test_it_is_total(self) -> None:
        """Each leaf has its row and each row its leaf."""
        assert set(LEAVES) == set(status.TABLE)

    def test_each_reason_is_one_exception(self) -> None:
        """Every value of the contract's enum has exactly one exception, and every exception a value."""
        assert sorted(ErrorReason.keys()) == sorted(
            [wire.REASON_PREFIX + leaf.reason for leaf in LEAVES] + ["ERROR_REASON_UNSPECIFIED"]
        )
        assert {leaf.reason: leaf for leaf in LEAVES} == errors.BY_REASON

    def test_the_tree_is_drawn(self) -> None:
        """The picture in the module's docstring shows every class, below its parent, and no other."""
        assert errors.__doc__ is not None
        depths = [
            (len(match[1]) // 6, match[2])
            for match in re.finditer(r"^    ([| ]*)\+-- (\w+)$", errors.__doc__, re.MULTILINE)
        ]
        drawn = [(name, depth) for depth, name in depths]

        def walk(parent: type[errors.ServingError], depth: int) -> Iterator[tuple[str, int]]:
            for child in parent.__subclasses__():
                yield child.__name__, depth
                yield from walk(child, depth + 1)

        assert list(walk(errors.ServingError, 0)) == drawn

    def test_only_leaves_are_raised(self) -> None:
        """Whatever is no leaf has no reason."""
        assert [] == [leaf for leaf in LEAVES if not re.fullmatch(r"[A-Z_]+", leaf.reason)]
        inner = {parent for leaf in LEAVES for parent in leaf.__mro__[1:-3]}
        assert {""} == {parent.reason for parent in inner if issubclass(parent, errors.ServingError)}


class TestTheContract:
    def test_every_reason_is_documented(self) -> None:
        """Each value of the enum has its comment."""
        assert sorted(leaf.reason for leaf in LEAVES) == sorted(DOCUMENTED)

    @each_leaf
    def test_codes_and_retry(self, leaf: type[errors.ServingError]) -> None:
        """The comment's codes and its word about retries are those of the table."""
        row = status.TABLE[leaf]
        expected = f"Codes: {row.before.name}, {row.after.name}. Retry: {'yes' if row.retry else 'no'}."
        assert expected in DOCUMENTED[leaf.reason].splitlines()

    @each_leaf
    def test_example(self, leaf: type[errors.ServingError]) -> None:
        """The comment's example is an ErrorInfo that this server could have sent."""
        (line,) = [line for line in DOCUMENTED[leaf.reason].splitlines() if line.startswith("Example: ")]
        example = json.loads(line.removeprefix("Example: "))
        metadata = dict(example["metadata"])
        assert all(re.fullmatch(r"[a-z][A-Za-z0-9]*", key) for key in metadata)
        tokens = metadata.pop("tokensEmitted", None)
        answer = status.of(
            leaf("words", metadata=metadata),
            tokens_emitted=tokens and int(tokens),
            started=tokens is not None,
        )
        info = detail_of(answer, error_details_pb2.ErrorInfo)
        assert example == {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}

    @each_leaf
    def test_one_sentence(self, leaf: type[errors.ServingError]) -> None:
        """Contract and code say the same about a reason."""
        lines = DOCUMENTED[leaf.reason].splitlines()
        words = " ".join(line for line in lines if not line.startswith(("Codes: ", "Example: ")))
        assert words == " ".join((leaf.__doc__ or "").split())


class TestCodes:
    @each_leaf
    @pytest.mark.parametrize("started", [False, True])
    def test_before_and_after_the_first_delta(self, leaf: type[errors.ServingError], started: bool) -> None:
        """The code is the row's; the words are the exception's."""
        row = status.TABLE[leaf]
        answer = status.of(leaf("do this next"), started=started)
        assert (row.after if started else row.before, "do this next") == (answer.code, answer.message)

    @each_leaf
    def test_nobody_retries_a_begun_answer(self, leaf: type[errors.ServingError]) -> None:
        """After the first delta no code invites a retry policy, but for a load that would fail again, with -1."""
        answer = status.of(leaf("words"), started=True)
        assert grpc.StatusCode.UNAVAILABLE is not answer.code
        assert detail_of(answer, error_details_pb2.RetryInfo) is None
        pushback = dict(answer.trailing_metadata).get("grpc-retry-pushback-ms")
        assert ("-1" if answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED else None) == pushback

    @each_leaf
    def test_pushback_before(self, leaf: type[errors.ServingError]) -> None:
        """A retry that helps is told when; one that cannot help is forbidden where the code would invite it."""
        answer = status.of(leaf("words"))
        pushback = dict(answer.trailing_metadata).get("grpc-retry-pushback-ms")
        retry = detail_of(answer, error_details_pb2.RetryInfo)
        if status.TABLE[leaf].retry:
            assert ("1000", 1.0) == (pushback, retry.retry_delay.seconds)
        else:
            inviting = answer.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert ("-1" if inviting else None, None) == (pushback, retry)

    @pytest.mark.parametrize(
        ("delay", "pushback", "nanos"),
        [
            (0.0, "0", 0),
            (0.0001, "1", 100_000),
            (2.5, "2500", 2_500_000_000),
            (61.0, "61000", 61_000_000_000),
        ],
    )
    def test_the_delay_is_the_exceptions(self, delay: float, pushback: str, nanos: int) -> None:
        """Zero is a delay; a fraction of a millisecond is rounded up."""
        answer = status.of(errors.QueueFull("full", retry_delay_seconds=delay))
        assert pushback == dict(answer.trailing_metadata)["grpc-retry-pushback-ms"]
        assert nanos == detail_of(answer, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds()


class TestDetails:
    def test_tokens_emitted(self) -> None:
        """How much was sent is told once something was, zero included, and not before."""
        error = errors.EngineCrashed("again", metadata={"model": "m"})
        after = detail_of(status.of(error, tokens_emitted=0, started=True), error_details_pb2.ErrorInfo)
        before = detail_of(status.of(error, tokens_emitted=0), error_details_pb2.ErrorInfo)
        assert {"model": "m", "tokensEmitted": "0"} == dict(after.metadata)
        assert {"model": "m"} == dict(before.metadata)

    def test_violations(self) -> None:
        """Each field at fault, in order."""
        answer = status.of(errors.InvalidRequest("no", violations=[("a", "b"), ("c[0].d", "e")]))
        violations = detail_of(answer, error_details_pb2.BadRequest).field_violations
        assert [("a", "b"), ("c[0].d", "e")] == [(item.field, item.description) for item in violations]

    def test_the_model_is_a_resource(self) -> None:
        """MODEL_NOT_FOUND repeats the name as ResourceInfo."""
        answer = status.of(errors.ModelNotFound("no", metadata={"model": "nope"}))
        info = detail_of(answer, error_details_pb2.ResourceInfo)
        assert ("inferwire.v1.Model", "nope") == (info.resource_type, info.resource_name)

    def test_the_logs_words_stay(self) -> None:
        """`detail` goes nowhere near the wire."""
        answer = status.of(errors.Internal("sorry", detail="/secret/path"), started=True)
        assert b"secret" not in b"".join(str(value).encode() for _, value in answer.trailing_metadata)


@each_leaf
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("text", ["a", "%", "é", "€", "😀", "\n"])
def test_trailers_fit(leaf: type[errors.ServingError], started: bool, text: str) -> None:
    """At most 6 KiB as they travel (percent-encoded, base64), however long and foreign the words are."""
    error = leaf(
        text * 5000,
        metadata={f"someLongishKey{number}": text * 5000 for number in range(6)} | {"model": text * 5000},
        violations=[(text * 5000, text * 5000)] * 100,
        retry_delay_seconds=1e9,
    )
    answer = status.of(error, tokens_emitted=1 << 31, started=started)
    assert wire_bytes(answer) <= MAX_TRAILER_BYTES
    info = detail_of(answer, error_details_pb2.ErrorInfo)
    assert (leaf.reason, "inferwire.dev") == (info.reason, info.domain)
    assert info.metadata["model"]
    assert len(answer.message) >= 100
    assert detail_of(answer, error_details_pb2.BadRequest).field_violations


def test_usual_words_are_not_cut() -> None:
    """Eight violations and a long sentence of plain words travel whole."""
    violations = [
        (f"chat.messages[{number}].parts[0].tool_call.arguments", "must be the JSON text of an object")
        for number in range(8)
    ]
    error = errors.InvalidRequest("x" * 250, metadata={"model": "y" * 128}, violations=violations)
    answer = status.of(error)
    assert "x" * 250 == answer.message
    sent = detail_of(answer, error_details_pb2.BadRequest).field_violations
    assert violations == [(item.field, item.description) for item in sent]
    assert math.inf > wire_bytes(answer) <= MAX_TRAILER_BYTES
