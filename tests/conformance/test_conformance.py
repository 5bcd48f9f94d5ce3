"""Every language's client meets every case, against the real server and peers that say what no server of ours would."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import pytest_asyncio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from tools import clients

from . import __main__ as command
from . import runner

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory):
    """The cases, for all clients that are built."""
    there = [language for language in clients.CLIENTS if absence(language) is None]
    async with runner.suite(there, tmp_path_factory.mktemp("certificates")) as made:
        yield made


def absence(language: str) -> str | None:
    """Says why a language cannot be tried, and how it could."""
    client = clients.CLIENTS[language]
    return client.problem() or (None if client.is_built else f"not built: make clients LANG={language}")


def require(language: str) -> None:
    """Skips a language that is not there; in CI that is a failure."""
    why = absence(language)
    if why is not None and clients.is_ci():
        pytest.fail(why)
    if why is not None:
        pytest.skip(why)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", clients.CLIENTS)
async def test_a_client_conforms(language, suite):
    """Every case passes but those that are known to fail, and one of these that passes is an error as well."""
    require(language)
    assert {} == runner.surprises(await suite.spoken(language), runner.known_failing(language))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", clients.CLIENTS)
async def test_a_client_keeps_a_connection_through_silence(language, suite):
    """The cases of the name; they began with the first test here."""
    require(language)
    assert {} == runner.surprises(await suite.silent(language), runner.known_failing(language))


async def test_cases_are_told_apart():
    """A case is known by its name; there are many."""
    names = [case["name"] for case in runner.CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 100


@pytest.mark.parametrize("language", clients.CLIENTS)
async def test_what_is_known_to_fail_is_a_case(language):
    """A name in known_failing that is no case would hide nothing and stay for ever."""
    assert set() == runner.known_failing(language) - {case["name"] for case in runner.CASES}


@pytest.mark.parametrize(
    ("why", "known", "surprised"),
    [(None, set(), False), (None, {"a"}, True), ("it failed", set(), True), ("it failed", {"a"}, False)],
)
async def test_a_pass_can_be_a_surprise(why, known, surprised):
    """A case that is known to fail must fail."""
    assert surprised == bool(runner.surprises({"a": why}, known))


async def test_the_table_is_of_these_cases():
    """results.json has an outcome of each case in each language, as expected; the table shows them."""
    results = json.loads(command.RESULTS.read_text())
    assert list(clients.CLIENTS) == list(results)
    for language, outcomes in results.items():
        assert {case["name"] for case in runner.CASES} == set(outcomes)
        assert {} == runner.surprises(outcomes, runner.known_failing(language))
    assert command.README.read_text().endswith(command.table(results))
    told = (runner.ROOT / "clients" / "README.md").read_text()
    assert len(results) == told.count(f"| {len(runner.CASES)} of {len(runner.CASES)} |")


@pytest.mark.parametrize("name", ["every optional scalar, zero", "every optional scalar, unset"])
async def test_each_optional_scalar_is_in_the_cases(name):
    """A new optional scalar joins these cases."""
    (case,) = [case for case in runner.CASES if case["name"] == name]
    said = set()
    for call in case["calls"]:
        said |= set(scalars(runner.request_of(call), are_set="zero" in name))
    assert {"same_requests": True} == case["asked"]
    methods = [pb.CompleteRequest, pb.EmbedRequest, models_pb2.LoadRequest]
    assert set().union(*(optional(method.DESCRIPTOR) for method in methods)) == said


def optional(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> set[str]:
    """The optional scalars of a message and of those in it, by their full names."""
    if descriptor.full_name in seen or descriptor.file.package != "inferwire.v1":
        return set()
    names = set()
    for field in descriptor.fields:
        if field.message_type is not None:
            names |= optional(field.message_type, seen | {descriptor.full_name})
        elif is_optional(field):
            names.add(field.full_name)
    return names


def scalars(message: Message, *, are_set: bool) -> Iterator[str]:
    """Yields the optional scalars, set or unset, of a message and of those in it that are there."""
    for field in message.DESCRIPTOR.fields:
        if is_optional(field):
            if message.HasField(field.name) == are_set:
                yield field.full_name
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            if field.is_repeated:
                for one in inner:
                    yield from scalars(one, are_set=are_set)
            elif message.HasField(field.name):
                yield from scalars(inner, are_set=are_set)


def is_optional(field: FieldDescriptor) -> bool:
    """Whether it is a scalar of which zero and unset differ, and no arm of a oneof of ours."""
    oneof = field.containing_oneof
    return field.message_type is None and oneof is not None and oneof.name == f"_{field.name}"
