"""Byte-level BPE in the manner of GPT-2: training, encoding and decoding.

The pre-tokenizer is the one that llama.cpp calls "gpt-2",
and a merge has the rank of its place in the list, so
that llama.cpp cuts every text into the same tokens.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import regex

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# These are part of the text that a caller sees, so they are not control tokens.
TEXT_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
SPECIAL_TOKENS = CONTROL_TOKENS + TEXT_TOKENS

_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_SPECIAL = regex.compile("(" + "|".join(map(regex.escape, SPECIAL_TOKENS)) + ")")


def byte_characters() -> list[str]:
    """Return the character that stands for each byte in a GPT-2 vocabulary.

    Printable bytes of Latin-1 stand for themselves; the other 68 are moved to 256 and up.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    moved = itertools.count(256)
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


_CHARACTERS = byte_characters()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


class Tokenizer:
    """256 bytes, then a token for each merge, then the special tokens. Immutable but for a cache of words."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = list(merges)
        self.tokens = [*_CHARACTERS, *(a + b for a, b in merges), *SPECIAL_TOKENS]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    def __repr__(self) -> str:
        return f"<Tokenizer [{len(self.tokens)} tokens | {len(self.merges)} merges]>"

    @classmethod
    def train(cls, texts: Iterable[str], num_tokens: int) -> Tokenizer:
        """Learn merges from `texts` until the vocabulary has `num_tokens` tokens.

        Digits and the bytes of other scripts are never merged: sums are then made digit by digit, and
        characters that are split over several tokens occur, which a server has to handle.
        """
        counts: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            for part in _SPECIAL.split(text):
                if part not in SPECIAL_TOKENS:
                    counts.update(tuple(_to_characters(word)) for word in _WORD.findall(part))
        merges: list[tuple[str, str]] = []
        while 256 + len(merges) + len(SPECIAL_TOKENS) < num_tokens:
            pairs: Counter[tuple[str, str]] = Counter()
            for word, count in counts.items():
                for pair in itertools.pairwise(word):
                    pairs[pair] += count
            allowed = (pair for pair in pairs if _may_merge(pair[0]) and _may_merge(pair[1]))
            # The pair itself decides between equal counts, so that the result does not depend on any order.
            best = max(allowed, key=lambda pair: (pairs[pair], pair))
            merges.append(best)
            merged: Counter[tuple[str, ...]] = Counter()
            for word, count in counts.items():
                merged[tuple(_merge(word, best))] += count
            counts = merged
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens included."""
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            if part in SPECIAL_TOKENS:
                ids.append(self.ids[part])
                continue
            for word in _WORD.findall(part):
                if word not in self._cache:
                    self._cache[word] = self._encode_word(word)
                ids += self._cache[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        data = bytearray()
        for number in ids:
            token = self.tokens[number]
            data += (
                token.encode() if token in SPECIAL_TOKENS else bytes(_BYTES[character] for character in token)
            )
        return data.decode(errors="replace")

    def _encode_word(self, word: str) -> list[int]:
        symbols = list(_to_characters(word))
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = _merge(symbols, best)
        return [self.ids[symbol] for symbol in symbols]


def _to_characters(word: str) -> str:
    return "".join(_CHARACTERS[byte] for byte in word.encode())


def _may_merge(symbol: str) -> bool:
    return not any(character.isdigit() or _BYTES[character] >= 0x80 for character in symbol)


def _merge(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(symbols):
        if tuple(symbols[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return merged
