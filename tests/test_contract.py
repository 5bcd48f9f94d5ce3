"""The published contract: what its comments promise, and the names that scripts rely on. Read from its source."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).resolve().parent.parent
BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
LEAD_WORDS = ("Required.", "Required (one of).", "Optional.", "Output only.")


def read_files() -> dict[str, FileDescriptorProto]:
    assert BUF is not None, "buf comes with the development requirements"
    image = subprocess.run(
        [BUF, "build", "--path", "proto/inferwire", "-o", "-"], cwd=ROOT, check=True, capture_output=True
    )
    files = FileDescriptorSet.FromString(image.stdout).file
    return {file.name: file for file in files if file.package == "inferwire.v1"}


FILES = read_files()


def comments_of(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comment above each element, on one line, by the element's path."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
    }


COMMENTS = {name: comments_of(file) for name, file in FILES.items()}


def messages() -> Iterator[tuple[str, tuple[int, ...], DescriptorProto]]:
    for name, file in FILES.items():
        for index, message in enumerate(file.message_type):
            yield name, (4, index), message
            # Nested messages are the entries of maps.
            assert all(nested.options.map_entry for nested in message.nested_type)


MESSAGES = {message.name: message for _, _, message in messages()}
FIELDS = [
    pytest.param(message, field, COMMENTS[name].get((*path, 2, index), ""), id=f"{message.name}.{field.name}")
    for name, path, message in messages()
    for index, field in enumerate(message.field)
]
RPCS = [
    pytest.param(COMMENTS[name].get((6, place, 2, index), ""), id=f"{service.name}.{method.name}")
    for name, file in FILES.items()
    for place, service in enumerate(file.service)
    for index, method in enumerate(service.method)
]
ENUMS = [
    pytest.param(name, (5, index), enum, id=enum.name)
    for name, file in FILES.items()
    for index, enum in enumerate(file.enum_type)
]


def fields_of(message: str) -> dict[str, FieldDescriptorProto]:
    return {field.name: field for field in MESSAGES[message].field}


def test_the_files() -> None:
    """Three files, proto3, so that old compilers read them; nothing of one language; nothing from a registry."""
    assert {f"inferwire/v1/{name}.proto" for name in ("error_reason", "inference", "models")} == set(FILES)
    for file in FILES.values():
        assert "proto3" == file.syntax
        assert not file.HasField("options")
        assert all(name.startswith(("inferwire/v1/", "google/protobuf/")) for name in file.dependency)


@pytest.mark.parametrize(("message", "field", "comment"), FIELDS)
def test_a_field_says_who_sets_it(
    message: DescriptorProto, field: FieldDescriptorProto, comment: str
) -> None:
    """Every field's comment begins with its lead word; an optional one says what unset means."""
    assert comment.startswith(LEAD_WORDS), comment
    if comment.startswith("Optional."):
        told_elsewhere = "As in " in comment
        assert "Unset" in comment or told_elsewhere or no_default_of_its_own(message.name, field.name), (
            comment
        )
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    if not comment.startswith("Output only."):
        assert in_oneof == comment.startswith("Required (one of)."), comment


def no_default_of_its_own(message: str, field: str) -> bool:
    """Optional fields whose absence is plain from their words."""
    return (message, field) in {
        ("Chat", "tools"),
        ("Chat", "template_arguments"),
        ("ToolCall", "id"),
        ("ToolCall", "signature"),
        ("Reasoning", "signature"),
    }


@pytest.mark.parametrize("comment", RPCS)
def test_an_rpc_says_how_it_fails(comment: str) -> None:
    """Every RPC's comment ends with its errors."""
    before, found, after = comment.rpartition("Errors:")
    assert found
    assert before.strip()
    assert after.strip()


@pytest.mark.parametrize("comment", RPCS)
def test_an_rpc_names_reasons_that_exist(comment: str) -> None:
    """What is written in capitals is a gRPC code, a reason, or a word that the contract defines."""
    (reasons,) = FILES["inferwire/v1/error_reason.proto"].enum_type
    known = {value.name.removeprefix("ERROR_REASON_") for value in reasons.value}
    codes = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    words = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", comment.rpartition("Errors:")[2]))
    assert set() == words - known - codes


@pytest.mark.parametrize(("name", "path", "enum"), ENUMS)
def test_an_enum(name: str, path: tuple[int, ...], enum: EnumDescriptorProto) -> None:
    """The zero is UNSPECIFIED, values carry the enum's name, everything has a comment."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    assert (0, f"{prefix}UNSPECIFIED") == (enum.value[0].number, enum.value[0].name)
    assert [] == [value.name for value in enum.value if not value.name.startswith(prefix)]
    assert COMMENTS[name][path]
    assert all(COMMENTS[name][(*path, 2, index)] for index in range(len(enum.value)))


def test_everything_has_a_comment() -> None:
    """Messages, services and oneofs, too."""
    bare = [message.name for name, path, message in messages() if not COMMENTS[name].get(path)]
    bare += [
        f"{message.name}.{oneof.name}"
        for name, path, message in messages()
        for index, oneof in enumerate(message.oneof_decl)
        if not oneof.name.startswith("_") and not COMMENTS[name].get((*path, 8, index))
    ]
    bare += [
        service.name
        for name, file in FILES.items()
        for index, service in enumerate(file.service)
        if not COMMENTS[name].get((6, index))
    ]
    assert [] == bare


@pytest.mark.parametrize("name", ["Sampling", "Xtc", "Dry", "Mirostat"])
def test_zero_can_be_said(name: str) -> None:
    """Every scalar of the sampling is `optional`, or Required: an unset one is never taken for zero."""
    required = {
        param.values[1].name
        for param in FIELDS
        if param.values[0].name == name and str(param.values[2]).startswith("Required.")
    }
    implicit = {
        field.name
        for field in MESSAGES[name].field
        if field.label != FieldDescriptorProto.LABEL_REPEATED
        and field.type != FieldDescriptorProto.TYPE_MESSAGE
        and not field.proto3_optional
    }
    assert implicit <= required


@pytest.mark.parametrize(
    ("message", "field", "kind"),
    [
        ("ListModelsResponse", "models", ".inferwire.v1.Model"),
        ("Model", "name", ""),
        ("CompleteRequest", "model", ""),
        ("CompleteRequest", "prompt", ""),
        ("CompleteRequest", "chat", ".inferwire.v1.Chat"),
        ("CompleteRequest", "sampling", ".inferwire.v1.Sampling"),
        ("CompleteRequest", "stopping", ".inferwire.v1.Stopping"),
        ("Sampling", "temperature", ""),
        ("Sampling", "seed", ""),
        ("Stopping", "max_tokens", ""),
        ("TextDelta", "text", ""),
    ],
)
def test_the_names_that_scripts_use(message: str, field: str, kind: str) -> None:
    """These names were fixed before the contract was written."""
    assert kind == fields_of(message)[field].type_name


def test_the_events_of_a_stream() -> None:
    """One oneof of the name `event`, with these arms and numbers."""
    (oneof,) = MESSAGES["StreamCompleteResponse"].oneof_decl
    assert "event" == oneof.name
    assert {"started": 1, "text": 2, "reasoning": 3, "tool_call": 4, "progress": 5, "completion": 6} == {
        name: field.number for name, field in fields_of("StreamCompleteResponse").items()
    }


def test_the_services() -> None:
    """Serving and administration are apart, so that a mesh policy can match the name."""
    services = {
        service.name: {rpc.name for rpc in service.method} for f in FILES.values() for service in f.service
    }
    assert {
        "InferenceService": {
            "Complete", "StreamComplete", "Embed", "CountTokens", "Tokenize", "Detokenize", "ListModels", "GetModel",
            "WatchModels", "ListBackends", "Health",
        },
        "ModelService": {"Load", "StreamLoad", "Unload"},
    } == services  # fmt: skip
