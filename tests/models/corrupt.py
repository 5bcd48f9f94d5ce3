"""A corpus of broken GGUF files, each a good one with one thing wrong.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is taken apart into pieces, one piece is replaced
or taken out, and the rest is put together again so that nothing else is wrong with it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from tests.models.tiny import NUM_TOKENS, WIDTH

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
UINT32, STRING, ARRAY = 4, 8, 9
HUGE = 1 << 60
_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclasses.dataclass(frozen=True)
class Broken:
    """A file that cannot be served, and the reason that a caller is told."""

    name: str
    data: bytes
    reason: str = "MODEL_FILE_INVALID"


@dataclasses.dataclass
class Pieces:
    """A GGUF file taken apart: entry by key, tensor information by name, and what follows them."""

    entries: dict[str, bytes]
    tensors: dict[str, bytes]
    data: bytes
    version: int = VERSION
    num_tensors: int | None = None
    num_entries: int | None = None

    @property
    def head(self) -> bytes:
        """The fixed header. The counts are the true ones unless they were set."""
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_entries = len(self.entries) if self.num_entries is None else self.num_entries
        return MAGIC + struct.pack("<IQQ", self.version, num_tensors, num_entries)

    def __bytes__(self) -> bytes:
        front = self.head + b"".join(self.entries.values()) + b"".join(self.tensors.values())
        return front + bytes(-len(front) % ALIGNMENT) + self.data

    def with_entry(self, key: str, value: bytes) -> Pieces:
        """Returns the file with another typed value of a key."""
        return dataclasses.replace(self, entries={**self.entries, key: _string(key) + value})

    def without(self, *keys: str) -> Pieces:
        """Returns the file without some entries."""
        kept = {key: entry for key, entry in self.entries.items() if key not in keys}
        return dataclasses.replace(self, entries=kept)

    def with_tensor(
        self, name: str, *, dims: tuple[int, ...], kind: int = 0, offset: int = 0, num_dims: int | None = None
    ) -> Pieces:
        """Returns the file with another description of a tensor; the data stay."""
        count = len(dims) if num_dims is None else num_dims
        piece = _string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)
        return dataclasses.replace(self, tensors={**self.tensors, name: piece})


def take_apart(data: bytes) -> Pieces:
    """Returns the pieces of a good file of version 3."""
    num_tensors, num_entries = struct.unpack_from("<QQ", data, 8)
    at = 24
    entries, tensors = {}, {}
    for _ in range(num_entries):
        begin = at
        key, at = _read_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        at = _skip_value(data, at + 4, kind)
        entries[key] = data[begin:at]
    for _ in range(num_tensors):
        begin = at
        name, at = _read_string(data, at)
        (num_dims,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * num_dims + 4 + 8
        tensors[name] = data[begin:at]
    return Pieces(entries, tensors, data[at + -at % ALIGNMENT :])


def broken_files(data: bytes) -> Iterator[Broken]:
    """Yields every broken file, made from a good one of `tests.models.tiny`."""
    pieces = take_apart(data)
    assert bytes(pieces) == data, "the pieces are not the file"
    yield from _not_the_format(pieces)
    yield from _cut(data, pieces)
    yield from _absurd_sizes(pieces)
    yield from _wrong_tensors(pieces)
    yield from _wrong_metadata(pieces)
    yield from _wrong_templates(pieces)


def _not_the_format(pieces: Pieces) -> Iterator[Broken]:
    data = bytes(pieces)
    yield Broken("empty", b"")
    yield Broken("magic_only", MAGIC)
    yield Broken("text", b"This is not a model.\n" * 100)
    yield Broken("zeros", bytes(4096))
    yield Broken("other_magic", b"GGML" + data[4:])
    yield Broken(
        "big_endian",
        MAGIC + struct.pack(">IQQ", VERSION, len(pieces.tensors), len(pieces.entries)) + data[24:],
    )
    for version in (0, 1, 4, 0xFFFFFFFF):
        yield Broken(f"version_{version}", bytes(dataclasses.replace(pieces, version=version)))


def _cut(data: bytes, pieces: Pieces) -> Iterator[Broken]:
    entries_end = 24 + sum(map(len, pieces.entries.values()))
    tensors_end = entries_end + sum(map(len, pieces.tensors.values()))
    for name, size in (
        ("cut_in_header", 12),
        ("cut_after_header", 24),
        ("cut_in_first_key", 24 + 8 + 4),
        ("cut_in_metadata", (24 + entries_end) // 2),
        ("cut_after_metadata", entries_end),
        ("cut_in_tensor_infos", (entries_end + tensors_end) // 2),
        ("cut_before_data", tensors_end),
        ("cut_in_data", (tensors_end + len(data)) // 2),
        ("cut_before_last_byte", len(data) - 1),
    ):
        yield Broken(name, data[:size])


def _absurd_sizes(pieces: Pieces) -> Iterator[Broken]:
    for count in (HUGE, (1 << 63) - 1, (1 << 64) - 1):
        yield Broken(f"num_tensors_{count:x}", bytes(dataclasses.replace(pieces, num_tensors=count)))
        yield Broken(f"num_entries_{count:x}", bytes(dataclasses.replace(pieces, num_entries=count)))
    yield Broken(
        "one_entry_too_many", bytes(dataclasses.replace(pieces, num_entries=len(pieces.entries) + 1))
    )
    yield Broken(
        "one_tensor_too_many", bytes(dataclasses.replace(pieces, num_tensors=len(pieces.tensors) + 1))
    )
    yield Broken("no_tensors", bytes(dataclasses.replace(pieces, tensors={}, data=b"")))
    yield Broken("key_length", pieces.head + struct.pack("<Q", HUGE) + b"general.architecture" + bytes(64))
    for length in (HUGE, (1 << 64) - 1):
        value = struct.pack("<IQ", STRING, length) + b"tiny"
        yield Broken(f"string_length_{length:x}", bytes(pieces.with_entry("general.name", value)))
    value = struct.pack("<IIQ", ARRAY, STRING, HUGE)
    yield Broken("array_length", bytes(pieces.with_entry("tokenizer.ggml.tokens", value)))
    value = struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQI", UINT32, 1, 7)
    yield Broken("array_of_arrays", bytes(pieces.with_entry("general.tags", value)))
    yield Broken("entry_type", bytes(pieces.with_entry("general.name", struct.pack("<IQ", 999, 0))))
    twice = dataclasses.replace(pieces, entries={**pieces.entries, "again": pieces.entries["general.name"]})
    yield Broken("key_twice", bytes(twice))


def _wrong_tensors(pieces: Pieces) -> Iterator[Broken]:
    name = "token_embd.weight"
    yield Broken("dims_overflow", bytes(pieces.with_tensor(name, dims=(1 << 33, 1 << 33))))
    yield Broken("dims_negative", bytes(pieces.with_tensor(name, dims=(WIDTH, (1 << 64) - NUM_TOKENS))))
    yield Broken("dims_zero", bytes(pieces.with_tensor(name, dims=(WIDTH, 0))))
    yield Broken("dims_huge", bytes(pieces.with_tensor(name, dims=(WIDTH, 1 << 40))))
    yield Broken("too_many_dims", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS, 1, 1, 1))))
    yield Broken("num_dims", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), num_dims=0xFFFFFFFF)))
    yield Broken("dims_swapped", bytes(pieces.with_tensor(name, dims=(NUM_TOKENS, WIDTH))))
    yield Broken("fewer_rows_than_tokens", bytes(pieces.with_tensor(name, dims=(WIDTH, 200))))
    for kind in (4, 999, 0x7FFFFFFF, 0xFFFFFFFF):
        yield Broken(
            f"tensor_type_{kind:x}", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), kind=kind))
        )
    yield Broken("tensor_type_q4_k", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), kind=12)))
    yield Broken(
        "offset_beyond_the_file", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), offset=HUGE))
    )
    yield Broken(
        "offset_overflow",
        bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), offset=(1 << 64) - ALIGNMENT)),
    )
    yield Broken("offset_not_aligned", bytes(pieces.with_tensor(name, dims=(WIDTH, NUM_TOKENS), offset=7)))
    first, *others = pieces.tensors
    yield Broken(
        "tensor_missing",
        bytes(dataclasses.replace(pieces, tensors={key: pieces.tensors[key] for key in others})),
    )
    twice = dataclasses.replace(pieces, tensors={**pieces.tensors, "again": pieces.tensors[first]})
    yield Broken("tensor_twice", bytes(twice))
    yield Broken("long_tensor_name", bytes(pieces.with_tensor("x" * 300, dims=(1,))))


def _wrong_metadata(pieces: Pieces) -> Iterator[Broken]:
    for key in (
        "general.architecture",
        "llama.block_count",
        "llama.embedding_length",
        "llama.context_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ):
        yield Broken(f"without_{key}", bytes(pieces.without(key)))
    tokenizer = [key for key in pieces.entries if key.startswith("tokenizer.")]
    yield Broken("without_tokenizer", bytes(pieces.without(*tokenizer)))
    for key, number in (
        ("general.alignment", 0),
        ("general.alignment", 7),
        ("llama.context_length", 0),
        ("llama.context_length", 1),
        ("llama.embedding_length", 0),
        ("llama.embedding_length", 63),
        ("llama.embedding_length", 0xFFFFFFFF),
        ("llama.feed_forward_length", 0),
        ("llama.block_count", 0),
        ("llama.block_count", 3),
        ("llama.block_count", 0xFFFFFFFF),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 5),
        ("llama.attention.head_count", 0xFFFFFFFF),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.rope.dimension_count", 7),
    ):
        value = struct.pack("<II", UINT32, number)
        yield Broken(f"{key}_{number:x}", bytes(pieces.with_entry(key, value)))
    yield Broken("string_for_a_number", bytes(pieces.with_entry("llama.block_count", _text("2"))))
    yield Broken(
        "number_for_a_string", bytes(pieces.with_entry("general.architecture", struct.pack("<II", UINT32, 1)))
    )
    value = struct.pack("<IIQ", ARRAY, STRING, 2) + _string("a") + _string("b")
    yield Broken("two_tokens", bytes(pieces.with_entry("tokenizer.ggml.tokens", value)))
    value = struct.pack("<IIQ", ARRAY, STRING, 0)
    yield Broken("no_tokens", bytes(pieces.with_entry("tokenizer.ggml.tokens", value)))
    yield Broken("unknown_tokenizer", bytes(pieces.with_entry("tokenizer.ggml.model", _text("abacus"))))
    yield Broken("unknown_pre_tokenizer", bytes(pieces.with_entry("tokenizer.ggml.pre", _text("abacus"))))
    yield Broken("unknown_architecture", bytes(pieces.with_entry("general.architecture", _text("abacus"))))
    yield Broken("encoder_only_architecture", bytes(_as_architecture(pieces, "bert")))
    not_text = struct.pack("<IQ", STRING, 4) + b"\xff\xfe\xc0\x80"
    yield Broken("architecture_not_utf8", bytes(pieces.with_entry("general.architecture", not_text)))


def _wrong_templates(pieces: Pieces) -> Iterator[Broken]:
    for name, template in (
        ("template_syntax", b"{% for message in messages %}"),
        ("template_unknown_tag", b"{% summon demon %}"),
        ("template_unknown_filter", b"{{ messages | abacus }}"),
        ("template_not_utf8", b"{{ '\xff\xfe' }}{% if %}"),
        ("template_raises", b"{{ raise_exception('never') }}"),
        ("template_divides_by_zero", b"{{ 1 / 0 }}"),
        ("template_includes_a_file", b"{% include '/etc/passwd' %}"),
        ("template_leaves_the_sandbox", b"{{ ''.__class__.__mro__[1].__subclasses__() | length }}"),
        ("template_deep", b"{{ " + b"(" * 5000 + b"1" + b")" * 5000 + b" }}"),
        (
            "template_without_end",
            b"{% for i in range(99999) %}{% for j in range(99999) %}.{% endfor %}{% endfor %}",
        ),
        (
            "template_silent_without_end",
            b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        ),
    ):
        value = struct.pack("<IQ", STRING, len(template)) + template
        yield Broken(name, bytes(pieces.with_entry("tokenizer.chat_template", value)), "TEMPLATE_INVALID")


def _as_architecture(pieces: Pieces, name: str) -> Pieces:
    """Returns the file as one of another architecture, its own keys renamed."""
    entries = {}
    for key, entry in pieces.entries.items():
        renamed = key.replace("llama.", f"{name}.", 1) if key.startswith("llama.") else key
        entries[renamed] = _string(renamed) + entry[8 + len(key.encode()) :]
    return dataclasses.replace(pieces, entries=entries).with_entry("general.architecture", _text(name))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text(text: str) -> bytes:
    return struct.pack("<I", STRING) + _string(text)


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _skip_value(data: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        return _read_string(data, at)[1]
    if kind == ARRAY:
        item, count = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(count):
            at = _skip_value(data, at, item)
        return at
    return at + _SCALAR_SIZES[kind]
